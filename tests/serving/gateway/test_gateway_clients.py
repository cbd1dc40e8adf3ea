"""The gateway, with a real haproxy: which version answers whom, who waits, and who is let in."""

import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving.gateway.gateways import (
    ASK,
    ask,
    ask_and_log,
    draining,
    entries,
    front,
    master_of,
    shares,
    workers,
)
from tests.serving.gateway.upstreams import Upstream, upstreams
from tests.waiting import until
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.openai_client import Client


def test_traffic_follows_the_weights(gateway: Gateway, two: list[Upstream]) -> None:
    port = free_port()
    gateway.apply(front(port, *two, weights=(75, 25)))
    assert 20 < shares(port, 200)["8"] < 85
    gateway.apply(front(port, *two, weights=(100, 0)))
    assert shares(port, 30) == {"7": 30}


def test_a_pinned_request_gets_its_version_or_an_error_but_never_another(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port = free_port()
    gateway.apply(front(port, *two, weights=(100, 0)))
    assert shares(port, 5, **{"X-Weighbridge-Version": "8"}) == {"8": 5}
    unknown = ask(port, **{"X-Weighbridge-Version": "9"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    two[1].close()
    with upstreams() as none:
        assert none == []
        assert ask(port, **{"X-Weighbridge-Version": "8"}).status_code == 503
    gateway.apply(draining(front(port, *two, weights=(100, 0)), "8"))
    assert ask(port, **{"X-Weighbridge-Version": "8"}).status_code == 404
    two[1] = Upstream("8")
    two[1].close()
    two[1] = Upstream("8")


def test_a_conversation_stays_on_its_version_over_weights_and_reloads(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    session = {"X-Weighbridge-Session": "conversation-1"}
    assert shares(port, 2, **session) == {"7": 2}
    gateway.apply(front(port, *two, weights=(0, 100)))
    assert shares(port, 5, **session) == {"7": 5}
    assert shares(port, 5) == {"8": 5}
    gateway.apply(front(port, *two, weights=(0, 100), queue=9))
    # The worker before hands over its table as soon as it can, which is not at once on a busy
    # machine.
    until(
        lambda: (
            "key=conversation-1 "
            in gateway._master.ask_worker(workers(gateway)[0], "show table demo")
        )
    )
    assert shares(port, 5, **session) == {"7": 5}
    gateway.apply(draining(front(port, *two, weights=(0, 100), queue=9), "7"))
    assert shares(port, 5, **session) == {"8": 5}


def test_a_version_that_is_not_well_gets_nothing(gateway: Gateway, two: list[Upstream]) -> None:
    port = free_port()
    two[1].health = "/well"
    desired = front(port, *two)
    routes = (desired.routes[0], desired.routes[1].model_copy(update={"health": "/well"}))
    gateway.apply(desired.model_copy(update={"routes": routes}))
    time.sleep(1.5)
    assert [server.up for server in gateway.servers("demo")] == [True, True]
    two[0].healthy = False
    until(lambda: not next(server for server in gateway.servers("demo") if server.name == "7").up)
    assert shares(port, 20) == {"8": 20}


def test_where_nothing_answers_the_error_says_when_to_come_back(gateway: Gateway) -> None:
    port = free_port()
    gateway.apply(front(port))
    answer = ask(port)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("queue", [0, 1])
def test_past_the_bound_of_the_queue_requests_are_turned_away(
    gateway: Gateway, two: list[Upstream], queue: int
) -> None:
    port = free_port()
    two[0].delay = 1.0
    gateway.apply(front(port, two[0], in_flight=1, queue=queue, queue_seconds=20))
    answers: list[int] = []
    clients = []
    for _ in range(4):
        clients.append(threading.Thread(target=lambda: answers.append(ask(port).status_code)))
        clients[-1].start()
        time.sleep(0.1)
    for client in clients:
        client.join()
    assert sorted(answers) == [200] * (1 + queue) + [503] * (3 - queue)


def test_waiting_ends_after_the_longest_wait(gateway: Gateway, two: list[Upstream]) -> None:
    port = free_port()
    two[0].delay = 3.0
    gateway.apply(front(port, two[0], in_flight=1, queue_seconds=0.3))
    first = threading.Thread(target=ask, args=(port,))
    first.start()
    until(lambda: gateway.sessions("demo", "7") == 1)
    began = time.monotonic()
    assert ask(port).status_code == 503
    assert time.monotonic() - began < 2
    first.join()


def test_keys_open_and_are_in_no_log_and_no_command(
    gateway: Gateway, two: list[Upstream], tmp_path: Path
) -> None:
    port, keys = free_port(), tmp_path / "keys"
    keys.write_text(f"# of the shop\n{hashlib.sha256(b'open-sesame').hexdigest()}\n")
    gateway.apply(front(port, two[0], api_keys=str(keys)))
    refused = ask_and_log(gateway, port, Authorization="Bearer guess")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ask_and_log(gateway, port).status_code == 401
    for key in ("open-sesame", gateway.key):
        answer = ask_and_log(gateway, port, Authorization=f"Bearer {key}")
        assert answer.status_code == 200
    assert all("Authorization" not in headers for headers in two[0].seen)
    assert [entry["status"] for entry in entries(gateway)] == [401, 401, 200, 200]
    written = gateway.log.read_text() + " ".join(psutil.Process(master_of(gateway)).cmdline())
    assert "open-sesame" not in written
    assert gateway.key not in written
    keys.write_text(hashlib.sha256(b"changed").hexdigest())
    gateway.apply(front(port, two[0], api_keys=str(keys)))
    assert ask(port, Authorization="Bearer open-sesame").status_code == 401
    assert ask(port, Authorization="Bearer changed").status_code == 200


def test_a_key_written_as_it_is_is_refused(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("open-sesame\n")
    with pytest.raises(BadInput, match="not the sha256") as refused:
        gateway.apply(front(free_port(), api_keys=str(tmp_path / "keys")))
    assert "open-sesame" not in str(refused.value)


def write_certificate(pem: Path, name: str) -> Path:
    """A new certificate with its key, signed by itself."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    key, certificate = pem.with_suffix(".key"), pem.with_suffix(".crt")
    subprocess.run(
        [*command.split(), "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    pem.write_text(certificate.read_text() + key.read_text())
    return pem


def ask_over_tls(port: int, certificate: Path) -> str:
    return Client(f"https://127.0.0.1:{port}", certificate=certificate)._ask("POST", ASK, {})["by"]


def test_tls_with_a_certificate_that_is_renewed(
    gateway: Gateway, two: list[Upstream], tmp_path: Path
) -> None:
    port, pem = free_port(), write_certificate(tmp_path / "my certificate.pem", "shop.example")
    gateway.apply(desired := front(port, two[0], tls=str(pem)))
    first = shutil.copy(pem, tmp_path / "first.pem")
    assert ask_over_tls(port, first) == "7"
    with pytest.raises(httpx.HTTPError):
        ask(port)
    with pytest.raises(BadInput):
        gateway.apply(front(port, two[0], tls=str(tmp_path / "nowhere")))
    assert gateway.is_current()
    write_certificate(pem, "shop.example")
    assert not gateway.is_current()
    gateway.apply(desired)
    assert gateway.is_current()
    second = shutil.copy(pem, tmp_path / "second.pem")
    assert ask_over_tls(port, second) == "7"
    with pytest.raises(Unavailable, match="certificate"):
        ask_over_tls(port, first)
    pem.write_text("half a certifi")
    gateway.stop()
    gateway.apply(desired)
    assert ask_over_tls(port, second) == "7", "what could be used last"
    until(lambda: entries(gateway))
    assert entries(gateway)[0]["target"] == "demo"


def test_a_target_that_serves_changes_to_https_and_back_and_a_stream_under_way_ends_whole(
    gateway: Gateway, two: list[Upstream], tmp_path: Path
) -> None:
    port, pem = free_port(), write_certificate(tmp_path / "shop.pem", "shop.example")
    gateway.apply(plain := front(port, two[0]))
    url = f"http://127.0.0.1:{port}/stream"
    with httpx.stream("POST", url, json={}, trust_env=False, timeout=20) as stream:
        pieces = stream.iter_text()
        beginning = next(pieces)
        gateway.apply(front(port, two[0], tls=str(pem)))
        assert ask_over_tls(port, pem) == "7"
        with pytest.raises(httpx.HTTPError):
            ask(port)
        assert (beginning + "".join(pieces)).endswith("data: [DONE]\n\n")
    # A haproxy that was killed comes back as it was told last.
    os.kill(master_of(gateway), signal.SIGKILL)
    until(gateway.answers, 20)
    assert ask_over_tls(port, pem) == "7"
    gateway.apply(plain)
    assert ask(port).json()["by"] == "7"
    with pytest.raises(Unavailable):
        ask_over_tls(port, pem)


def test_a_key_that_is_removed_opens_nothing_more_and_no_connection_is_lost(
    gateway: Gateway, two: list[Upstream], tmp_path: Path
) -> None:
    port, keys = free_port(), tmp_path / "keys"
    keys.write_text(digests("old", "stays"))
    gateway.apply(desired := front(port, two[0], api_keys=str(keys)))
    before = workers(gateway)
    with (
        keyed(port, "old") as old,
        keyed(port, "stays") as stays,
        keyed(port, "stays") as from_before,
    ):
        for client in (old, stays, from_before):
            assert client.post(ASK, json={}).status_code == 200
        assert gateway.is_current()
        keys.write_text(digests("stays", "new"))
        assert not gateway.is_current()
        gateway.apply(desired)
        assert gateway.is_current()
        assert workers(gateway) == before
        assert old.post(ASK, json={}).status_code == 401
        assert stays.post(ASK, json={}).status_code == 200
        assert ask(port, Authorization="Bearer new").status_code == 200
        # A worker that a reload has replaced is told of keys as well.
        gateway.apply(front(port, two[0], api_keys=str(keys), queue=9))
        keys.write_text(digests("new"))
        gateway.refresh_keys()
        assert gateway.is_current()
        assert len(workers(gateway)) == 2
        assert from_before.post(ASK, json={}).status_code == 401
    for broken in ("open-sesame\n", None):
        keys.write_text(broken) if broken else keys.unlink()
        gateway.apply(front(port, two[0], api_keys=str(keys), queue=9))
        assert ask(port, Authorization="Bearer new").status_code == 200
        assert (ask(port, Authorization="Bearer stays").status_code, ask(port).status_code) == (
            401,
            401,
        )


def test_keys_that_are_asked_for_hold_on_connections_that_were_open_before(
    gateway: Gateway, two: list[Upstream], tmp_path: Path
) -> None:
    port, keys = free_port(), tmp_path / "keys"
    keys.write_text(digests("shop"))
    gateway.apply(front(port, two[0]))
    with keyed(port, "none") as client:
        assert client.post(ASK, json={}).status_code == 200
        gateway.apply(front(port, two[0], api_keys=str(keys), queue=9))
        assert client.post(ASK, json={}).status_code == 401
    gateway.stop()
    gateway.ensure()
    assert (ask(port).status_code, ask(port, Authorization="Bearer shop").status_code) == (401, 200)
    gateway.apply(front(port, two[0]))
    assert ask(port).status_code == 200


def keyed(port: int, key: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=20,
    )


def digests(*keys: str) -> str:
    return "".join(f"{hashlib.sha256(key.encode()).hexdigest()}\n" for key in keys)
