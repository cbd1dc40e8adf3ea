"""The receiver takes what MLflow signed, once, and nothing that only looks like it."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.waiting import soon
from weighbridge.core.errors import Unavailable
from weighbridge.deployer import webhook_receiver
from weighbridge.deployer.hosted_runs import Outcome
from weighbridge.deployer.webhook_receiver import (
    PATH,
    Callbacks,
    Delivery,
    Receiver,
    SeenDeliveries,
    application,
    signature,
)

SECRET = "s3cret"
TOKEN = "t0ken"
ALIAS = {
    "entity": "model_version_alias",
    "action": "created",
    "timestamp": "2026-11-24T03:00:00+00:00",
    "data": {"name": "demo", "alias": "champion", "version": "7"},
}


class Desk:
    """A running receiver and what it passed on."""

    def __init__(self, path: Path, secret: str = SECRET) -> None:
        self.deliveries: list[Delivery] = []
        self.woken: list[tuple[str, str]] = []
        self.runs: list[tuple[str, uuid.UUID]] = []
        self.outcome: Future[Outcome] = Future()
        callbacks = Callbacks(
            self.deliveries.append,
            lambda *call: self.woken.append(call),
            lambda: {"targets": {}},
            self._run,
        )
        app = application(callbacks, SecretStr(secret), SecretStr(TOKEN), SeenDeliveries(path))
        self.receiver = Receiver(app, 0)
        self.receiver.start()
        self.client = httpx.Client(base_url=self.receiver.url, trust_env=False, timeout=20)

    def deliver(
        self,
        body: Any = ALIAS,
        *,
        secret: str = SECRET,
        id: str = "",
        age: float = 0.0,
        timestamp: str = "",
    ) -> int:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        id, timestamp = id or uuid.uuid4().hex, timestamp or str(int(time.time() - age))
        headers = {
            "X-MLflow-Delivery-Id": id,
            "X-MLflow-Timestamp": timestamp,
            "X-MLflow-Signature": signature(secret, id, timestamp, raw),
        }
        return self.client.post(PATH, content=raw, headers=headers).status_code

    def _run(self, flow: str, run: uuid.UUID) -> "Future[Outcome]":
        self.runs.append((flow, run))
        return self.outcome

    def close(self) -> None:
        self.client.close()
        self.receiver.stop()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "seen.json")
    yield desk
    desk.close()


def test_what_mlflow_signed_is_passed_on_under_prefects_name(desk: Desk) -> None:
    assert desk.deliver(id="one") == 200
    assert desk.deliveries == [
        Delivery(id="one", entity="model_version_alias", action="created", data=ALIAS["data"])
    ]
    assert desk.deliveries[0].event == "mlflow.model-version-alias.created"


def test_forged_unsigned_old_and_early_deliveries_are_unauthorized(desk: Desk) -> None:
    assert desk.deliver(secret="another") == 401
    assert desk.deliver(age=301) == 401
    assert desk.deliver(age=-310) == 401
    assert desk.deliver(timestamp="now") == 401
    assert desk.deliver(timestamp="9" * 400) == 401
    assert desk.client.post(PATH, json=ALIAS).status_code == 401
    assert desk.deliveries == []
    assert desk.deliver(age=290) == 200


def test_a_signature_is_for_one_body_one_id_and_one_time(desk: Desk) -> None:
    now, body = str(int(time.time())), json.dumps(ALIAS).encode()
    right = {
        "X-MLflow-Delivery-Id": "a",
        "X-MLflow-Timestamp": now,
        "X-MLflow-Signature": signature(SECRET, "a", now, body),
    }
    wrong = [
        ({**right, "X-MLflow-Delivery-Id": "b"}, body),
        ({**right, "X-MLflow-Timestamp": str(int(now) - 1)}, body),
        (right, body + b" "),
        ({**right, "X-MLflow-Signature": "v1,ä"}, body),
    ]
    for headers, content in wrong:
        encoded = {key: value.encode() for key, value in headers.items()}
        assert desk.client.post(PATH, content=content, headers=encoded).status_code == 401
    assert desk.client.post(PATH, content=body, headers=right).status_code == 200


def test_without_a_secret_nothing_is_believed(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "seen.json", secret="")
    try:
        assert desk.deliver(secret="") == 401
    finally:
        desk.close()


def test_a_delivery_is_taken_once_even_after_a_restart(desk: Desk, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: desk.deliver(id="one"), range(10))) == {200}
    assert len(desk.deliveries) == 1
    later = Desk(tmp_path / "seen.json")
    try:
        assert later.deliver(id="one") == 200
        assert later.deliveries == []
        assert later.deliver(id="two") == 200
        assert len(later.deliveries) == 1
    finally:
        later.close()


def test_a_list_of_ids_that_is_damaged_or_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "damaged.json").write_text("[1")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "damaged.json", tmp_path / "folder"):
        desk = Desk(path)
        try:
            assert [desk.deliver(id="one"), desk.deliver(id="one")] == [200, 200]
            assert len(desk.deliveries) == 1
        finally:
            desk.close()


def test_ids_are_forgotten_when_their_time_is_over(tmp_path: Path) -> None:
    seen = SeenDeliveries(tmp_path / "seen.json")
    for n in range(5):
        seen.add(str(n), now=1000.0 + 200 * n)
    assert [str(n) in seen for n in range(5)] == [False, True, True, True, True]
    assert "1" in SeenDeliveries(tmp_path / "seen.json")


def test_what_is_too_long_is_refused_before_it_is_read(desk: Desk) -> None:
    assert desk.deliver({**ALIAS, "x": "y" * webhook_receiver.MAX_BODY_BYTES}) == 413

    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 1024

    assert desk.client.post(PATH, content=endless()).status_code == 413
    with socket.create_connection(("127.0.0.1", int(desk.receiver.url.rpartition(":")[2]))) as raw:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n"
        raw.sendall(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
    assert desk.deliveries == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'{"entity": "x"}', b"\xff", b"[" * 20_000]
)
def test_signed_nonsense_is_a_bad_request(desk: Desk, body: bytes) -> None:
    assert desk.deliver(body) == 400
    assert desk.deliveries == []


def test_a_body_that_never_comes_is_not_waited_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_receiver, "BODY_TIMEOUT", 0.2)
    with socket.create_connection(
        ("127.0.0.1", int(desk.receiver.url.rpartition(":")[2])), timeout=10
    ) as raw:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n"
        raw.sendall(f"{head}Content-Length: 10\r\n\r\n123".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def test_a_wake_up_call_names_a_target_or_means_all(desk: Desk) -> None:
    call = {"target": "demo", "trigger": "promote"}
    assert desk.client.post("/wake", headers=AUTHORIZED).status_code == 202
    assert desk.client.post("/wake", headers=AUTHORIZED, json=call).status_code == 202
    assert desk.woken == [("", "wake"), ("demo", "promote")]
    for body in (b"[]", b"{", b'{"target": 7}', b'{"target": "../x"}'):
        assert desk.client.post("/wake", headers=AUTHORIZED, content=body).status_code == 400
    assert len(desk.woken) == 2


@pytest.mark.parametrize("header", ["", TOKEN, "Bearer t0ke", "Basic t0ken", "Bearer ä"])
def test_a_wake_up_call_without_the_token_wakes_nobody(desk: Desk, header: str) -> None:
    body, headers = '{"target":"demo","trigger":"rollback"}', {"Content-Type": "text/plain"}
    if header:
        headers["Authorization"] = header
    encoded = {name: value.encode() for name, value in headers.items()}
    assert desk.client.post("/wake", content=body, headers=encoded).status_code == 401
    assert desk.woken == []


def test_a_page_whose_name_was_made_to_mean_this_machine_is_told_nothing(desk: Desk) -> None:
    for path in ("/status", "/health"):
        headers = {"Host": f"evil.example:{desk.receiver.url.rpartition(':')[2]}"}
        assert desk.client.get(path, headers=headers).status_code == 400


@pytest.mark.parametrize(("outcome", "status"), [("over", 200), ("refused", 409), ("broken", 500)])
def test_a_flow_run_is_answered_when_it_is_over_and_others_meanwhile(
    desk: Desk, outcome: Outcome, status: int
) -> None:
    body, login = {"flow": "monitor", "id": str(uuid.uuid4())}, {"Authorization": f"Bearer {TOKEN}"}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(desk.client.post, "/flow-runs", json=body, headers=login)
        assert soon(lambda: bool(desk.runs))
        assert httpx.get(f"{desk.receiver.url}/health", trust_env=False).is_success
        assert not asked.done()
        desk.outcome.set_result(outcome)
        assert asked.result().status_code == status
    assert desk.runs == [("monitor", uuid.UUID(body["id"]))]


def test_a_flow_run_is_not_begun_for_anybody(desk: Desk) -> None:
    body, login = {"flow": "monitor", "id": str(uuid.uuid4())}, {"Authorization": f"Bearer {TOKEN}"}
    assert desk.client.post("/flow-runs", json=body).status_code == 401
    for wrong in ({"flow": "monitor"}, {**body, "id": 1}, {**body, "id": "../.."}, []):
        assert desk.client.post("/flow-runs", json=wrong, headers=login).status_code == 400
    assert desk.runs == []


def test_it_says_how_it_is(desk: Desk) -> None:
    assert desk.client.get("/health").json() == {"status": "ok"}
    assert desk.client.get("/status").json() == {"targets": {}}
    assert desk.client.get(PATH).status_code == 405
    assert desk.client.get("/elsewhere").status_code == 404


def test_a_taken_port_is_said_on_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        callbacks = Callbacks(lambda _: None, lambda *_: None, dict, lambda *_: Future())
        seen = SeenDeliveries(Path("/nowhere/seen"))
        app = application(callbacks, SecretStr(""), SecretStr(""), seen)
        with pytest.raises(Unavailable, match="WEIGHBRIDGE_DEPLOYER_PORT"):
            Receiver(app, taken.getsockname()[1])


def test_it_listens_to_this_machine_alone_and_its_thread_ends(desk: Desk) -> None:
    assert desk.receiver.url.startswith("http://127.0.0.1:")
    desk.close()
    assert not any(thread.name == "receiver" for thread in threading.enumerate())
