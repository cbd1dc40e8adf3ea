"""The gateway, with a real haproxy: no change of versions, addresses or configuration loses a
request.
"""

import errno
import os
import random
import signal
import socket
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
    has_another_worker,
    master_of,
    shares,
    workers,
)
from tests.serving.gateway.upstreams import Load, Upstream
from tests.waiting import until
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port
from weighbridge.serving.gateway import ports
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.haproxy import Master, NotAnswering
from weighbridge.serving.gateway.models import Route
from weighbridge.serving.supervisor import Supervisor


def test_an_answer_says_which_version_gave_it(gateway: Gateway, two: list[Upstream]) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    answer = ask_and_log(gateway, port, **{"X-Request-ID": 'mine "7"'})
    assert answer.json() == {"by": "7"}
    assert answer.headers["X-Weighbridge-Version"] == "7"
    assert answer.headers["X-Request-ID"] == 'mine "7"'
    assert len(ask(port).headers["X-Request-ID"]) == 36
    assert two[0].seen[0]["X-Request-ID"] == 'mine "7"'
    first = entries(gateway)[0]
    assert (first["server"], first["status"], first["id"], first["path"]) == (
        "7",
        200,
        'mine "7"',
        ASK,
    )


def test_every_change_of_versions_under_load_loses_nothing(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port, (old, new) = free_port(), two
    gateway.apply(front(port, old))
    before = workers(gateway)
    with Load(f"http://127.0.0.1:{port}") as load:
        for there, coming in ((old, new), (new, old), (old, new)):
            for weights in ((100, 0), (90, 10), (50, 50), (0, 100)):
                gateway.apply(desired := front(port, there, coming, weights=weights))
                time.sleep(0.3)
            gateway.apply(draining(desired, there.name))
            until(lambda there=there: gateway.sessions("demo", there.name) == 0)  # type: ignore[misc]
            gateway.apply(front(port, coming))
            assert [server.name for server in gateway.servers("demo")] == [coming.name]
    assert load.wrong == []
    assert min(load.answered["7"], load.answered["8"]) > 50
    assert workers(gateway) == before


def test_with_a_full_disk_traffic_moves_all_the_same_and_nothing_else_does(
    gateway: Gateway, two: list[Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, (old, new) = free_port(), two
    gateway.apply(front(port, old, new, weights=(90, 10)))
    back = front(port, old, new, weights=(100, 0))

    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("weighbridge.serving.gateway.files.replace_text", no_room)
        gateway.apply(back)
        assert {server.name: server.weight for server in gateway.servers("demo")} == {
            old.name: 100,
            new.name: 0,
        }
        with pytest.raises(Unavailable, match=r"No space left on device; make room on the disk"):
            gateway.apply(front(port, old, queue=9))
    assert back not in gateway.fronts()
    gateway.apply(back)
    assert back in gateway.fronts()


def test_a_worker_that_stands_still_answers_nobody_and_ends_with_its_master(
    gateway: Gateway, two: list[Upstream], home: Path
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    assert gateway.answers()
    [worker] = workers(gateway)
    os.kill(worker, signal.SIGSTOP)
    assert gateway.running()
    assert not gateway.answers()
    assert Supervisor(home).kill("gateway")
    until(gateway.answers)
    until(lambda: not psutil.pid_exists(worker))
    assert ask(port).json() == {"by": "7"}


def test_reloads_under_load_lose_nothing_and_streams_end_whole(
    gateway: Gateway, two: list[Upstream], tmp_path: Path
) -> None:
    port, other = free_port(), free_port()
    gateway.apply(front(port, two[0]))
    with Load(f"http://127.0.0.1:{port}") as load:
        for number in range(4):
            gateway.apply(front(port, two[0], queue=100 + number))
            gateway.apply(front(other, two[1], target="other"))
            time.sleep(0.5)
            assert ask(other).json() == {"by": "8"}
            gateway.remove("other")
    assert load.wrong == []
    assert sum(load.answered.values()) > 100
    with pytest.raises(httpx.ConnectError):
        ask(other)


def test_requests_begun_before_a_reload_count_and_keep_their_version(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    answers: list[httpx.Response] = []
    client = threading.Thread(target=lambda: answers.append(ask(port, "/stream")))
    client.start()
    until(lambda: gateway.sessions("demo", "7") == 1)
    gateway.apply(front(port, two[0], queue=9))
    assert len(workers(gateway)) == 2
    assert gateway.sessions("demo", "7") == 1
    assert sum(server.sessions for server in gateway.servers("demo")) == 1
    gateway.apply(front(port, two[1], queue=9))
    client.join()
    assert answers[0].text.endswith("[DONE]\n\n")
    until(lambda: gateway.sessions("demo", "7") == 0)


def test_an_idle_connection_from_before_a_reload_gets_a_last_answer_and_its_version_waits_for_it(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert client.post(ASK, json={}).json() == {"by": "7"}
        gateway.apply(front(port, two[0], queue=9))
        gateway.apply(draining(front(port, *two, queue=9, weights=(0, 100)), "7"))
        assert shares(port, 5) == {"8": 5}
        assert gateway.sessions("demo", "7") == 1
        assert client.post(ASK, json={}).json() == {"by": "7"}
        until(lambda: gateway.sessions("demo", "7") == 0)
        assert client.post(ASK, json={}).json() == {"by": "8"}


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_killed_it_comes_back_as_it_was_last_told(
    gateway: Gateway, two: list[Upstream], victim: str
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    gateway.apply(front(port, *two, weights=(0, 100)))
    pid = workers(gateway)[0]
    os.kill(master_of(gateway) if victim == "master" else pid, signal.SIGKILL)
    until(lambda: has_another_worker(gateway, pid))
    assert shares(port, 10) == {"8": 10}
    assert ask(port, **{"X-Weighbridge-Version": "7"}).json() == {"by": "7"}
    assert {(f.name, f.weight, f.draining) for f in gateway.servers("demo")} == {
        ("7", 0, False),
        ("8", 100, False),
    }


def test_a_change_that_was_cut_off_is_finished_by_the_next(
    gateway: Gateway, two: list[Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    commands: list[str] = []

    def cut_off(self: Master, worker: int, command: str, real: object = Master.ask_worker) -> str:
        answer = real(self, worker, command)  # type: ignore[operator]
        if command.startswith(("add", "set", "enable", "del")):
            commands.append(command)
            if len(commands) == stop:
                raise KeyboardInterrupt
        return str(answer)

    monkeypatch.setattr(Master, "ask_worker", cut_off)
    for stop in range(1, 10):
        commands.clear()
        there, coming = two if stop % 2 else two[::-1]
        try:
            gateway.apply(front(port, coming))
        except KeyboardInterrupt:
            stop = 0
            gateway.ensure()
        assert [server.name for server in gateway.servers("demo") if not server.draining] == [
            coming.name
        ], commands
        assert shares(port, 4) == {coming.name: 4}, there.name


def test_a_port_of_somebody_elses_is_refused_before_anything_changes(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        theirs = taken.getsockname()[1]
        with pytest.raises(BadInput, match="taken by"):
            gateway.apply(front(theirs, two[1]))
    with pytest.raises(BadInput, match="another target's"):
        gateway.apply(front(port, two[1], target="other"))
    assert gateway.fronts() == [front(port, two[0])]
    assert ask(port).json() == {"by": "7"}


def test_a_port_taken_at_the_last_moment_leaves_all_as_it_was(
    gateway: Gateway, two: list[Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    monkeypatch.setattr(ports, "port_is_free", lambda host, port: True)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(BadInput, match="cannot bind"),
    ):
        gateway.apply(front(taken.getsockname()[1], two[1], target="other"))
    assert gateway.fronts() == [front(port, two[0])]
    assert ask(port).json() == {"by": "7"}
    gateway.apply(front(port, two[1]))
    assert ask(port).json() == {"by": "8"}


def test_a_target_moves_to_another_address(gateway: Gateway, two: list[Upstream]) -> None:
    first, second = free_port(), free_port()
    gateway.apply(front(first, two[0]))
    gateway.apply(front(first, two[0]).model_copy(update={"host": "0.0.0.0"}))
    assert ask(first).json() == {"by": "7"}
    gateway.apply(front(second, two[0]))
    assert ask(second).json() == {"by": "7"}
    with pytest.raises(httpx.ConnectError):
        ask(first)


def test_a_version_that_listens_elsewhere_now_is_followed(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port = free_port()
    gateway.apply(front(port, two[0]))
    moved = Route(name="7", port=two[1].port)
    gateway.apply(front(port).model_copy(update={"routes": (moved,)}))
    assert shares(port, 5) == {"8": 5}
    assert [server.port for server in gateway.servers("demo")] == [two[1].port]


def test_doing_the_same_again_changes_nothing(gateway: Gateway, two: list[Upstream]) -> None:
    port = free_port()
    gateway.apply(front(port, *two, weights=(90, 10)))
    before, master = workers(gateway), master_of(gateway)
    gateway.apply(front(port, *two, weights=(90, 10)))
    gateway.ensure()
    assert (workers(gateway), master_of(gateway)) == (before, master)


def test_metrics_are_told_on_the_loopback_at_a_port_that_stays(
    gateway: Gateway, home: Path
) -> None:
    gateway.ensure()
    port = gateway.metrics_port
    assert 20_000 <= port <= 32_000
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert "haproxy_process_uptime_seconds" in metrics
    gateway.stop()
    assert not gateway.running()
    Gateway(home).ensure()
    assert gateway.metrics_port == port


def test_a_home_too_deep_for_a_socket_works(tmp_path: Path, two: list[Upstream]) -> None:
    home, port = tmp_path / ("d" * 60) / ("e" * 60), free_port()
    try:
        Gateway(home).apply(front(port, two[0]))
        assert ask(port).json() == {"by": "7"}
    finally:
        Supervisor(home).shutdown()


def test_two_targets_changed_at_once_both_become_what_was_asked(
    gateway: Gateway, two: list[Upstream]
) -> None:
    ports = [free_port(), free_port()]
    changes = [
        threading.Thread(
            target=Gateway(gateway.folder.parents[1]).apply,
            args=(front(port, upstream, target=f"t{upstream.name}"),),
        )
        for port, upstream in zip(ports, two, strict=True)
    ]
    for change in changes:
        change.start()
    for change in changes:
        change.join()
    assert [ask(port).json()["by"] for port in ports] == ["7", "8"]


def test_names_haproxy_cannot_have_are_refused(gateway: Gateway) -> None:
    with pytest.raises(BadInput, match="cannot be a name"):
        gateway.apply(front(free_port(), target="a b\n  server x"))
    routes = (Route(name="7", port=9, health="/x\nset y"),)
    with pytest.raises(BadInput, match="not a path"):
        gateway.apply(front(free_port()).model_copy(update={"routes": routes}))


def test_without_haproxy_it_says_how_to_get_it(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "weighbridge.serving.gateway.haproxy.shutil.which", lambda *args, **kwargs: None
    )
    with pytest.raises(Unavailable, match="apt-get install haproxy"):
        gateway.ensure()


def test_facts_of_a_gateway_that_does_not_run_are_not_made_up(gateway: Gateway) -> None:
    assert not gateway.running()
    assert gateway.fronts() == []
    with pytest.raises(Unavailable, match="asking the gateway"):
        gateway.servers("demo")
    with pytest.raises(NotAnswering):
        Master(gateway.folder / "nowhere").workers()


def test_random_changes_under_load_end_as_asked_with_nothing_lost(
    gateway: Gateway, two: list[Upstream]
) -> None:
    port, dice = free_port(), random.Random(4)
    gateway.apply(front(port, *two))
    with Load(f"http://127.0.0.1:{port}", short=4, streams=2) as load:
        for _ in range(25):
            weights = dice.choice([(100, 0), (0, 100), (50, 50), (1, 99)])
            desired = front(port, *two, weights=weights, queue=dice.choice([256, 256, 256, 255]))
            if dice.random() < 0.4:
                desired = draining(desired, "7" if weights[1] else "8")
            gateway.apply(desired)
            servers = {
                server.name: (server.weight, server.draining) for server in gateway.servers("demo")
            }
            assert servers == {
                route.name: (route.weight, route.draining) for route in desired.routes
            }
    assert load.wrong == []
