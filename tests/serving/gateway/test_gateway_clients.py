"""The gateway, with a real haproxy: which version answers whom, who waits, and who is let in."""

import hashlib
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
    draining,
    entries,
    front,
    master_of,
    shares,
    workers,
)
from tests.serving.gateway.upstreams import Upstream, upstreams
from tests.waiting import until
from weighbridge.core.errors import BadInput
from weighbridge.core.processes import free_port
from weighbridge.serving.gateway.gateway import Gateway


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
    refused = ask(port, Authorization="Bearer guess")
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert ask(port).status_code == 401
    assert ask(port, Authorization="Bearer open-sesame").status_code == 200
    assert ask(port, Authorization=f"Bearer {gateway.key}").status_code == 200
    assert all("Authorization" not in headers for headers in two[0].seen)
    until(lambda: len(entries(gateway)) == 4)
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


def test_tls(gateway: Gateway, two: list[Upstream], tmp_path: Path) -> None:
    port, pem = free_port(), tmp_path / "my certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command += " -addext subjectAltName=IP:127.0.0.1"
    command_line = [
        *command.split(),
        "-keyout",
        str(tmp_path / "key"),
        "-out",
        str(tmp_path / "crt"),
    ]
    subprocess.run(command_line, check=True, capture_output=True)
    pem.write_text((tmp_path / "crt").read_text() + (tmp_path / "key").read_text())
    gateway.apply(front(port, two[0], tls=str(pem)))
    import ssl

    context = ssl.create_default_context(cafile=tmp_path / "crt")
    answer = httpx.post(f"https://127.0.0.1:{port}{ASK}", json={}, verify=context, trust_env=False)
    assert answer.json() == {"by": "7"}
    with pytest.raises(BadInput):
        gateway.apply(front(port, two[0], tls=str(tmp_path / "nowhere")))
    until(lambda: entries(gateway))
    assert entries(gateway)[0]["target"] == "demo"
