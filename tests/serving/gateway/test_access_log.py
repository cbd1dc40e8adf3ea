"""The gateway's log, followed."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving.gateway.gateways import front
from tests.serving.gateway.upstreams import Upstream, upstreams
from tests.waiting import until
from weighbridge.core.processes import free_port
from weighbridge.serving.gateway.access_log import AccessLog
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.supervisor import Supervisor

LATER = 32503680000.0
"""Unix time, in seconds, after every test."""


def line(number: int, target: str = "demo", ended: float = LATER) -> str:
    entry = {"target": target, "server": "7", "status": 200, "ms": number, "cut": "--"}
    entry |= {"ended": round(ended * 1000), "type": "text/event-stream; charset=utf-8", "pinned": 1}
    return json.dumps(entry) + "\n"


def write(log: Path, *numbers: int, target: str = "demo") -> None:
    with log.open("a") as stream:
        stream.writelines(line(number, target) for number in numbers)


def rotate(log: Path) -> None:
    for number in (2, 1, 0):
        old = log.with_name(f"{log.name}.{number}") if number else log
        if old.exists():
            old.replace(log.with_name(f"{log.name}.{number + 1}"))


def numbers(requests: list[FinishedRequest]) -> list[int]:
    return [round(request.seconds * 1000) for request in requests]


def test_reads_what_is_new_of_its_target_alone(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    write(log, 1)
    traffic = AccessLog(log, "demo")
    write(log, 2)
    write(log, 3, target="other")
    write(log, 4)
    with log.open("a") as stream:
        stream.write("[NOTICE] (1) : haproxy's own words\n")
    requests = traffic.read()
    assert numbers(requests) == [2, 4]
    assert (requests[0].server, requests[0].stream, requests[0].pinned, requests[0].at) == (
        "7",
        True,
        True,
        LATER,
    )
    assert traffic.read() == []


def test_a_line_that_comes_late_is_not_of_now(tmp_path: Path) -> None:
    before, log = time.time(), tmp_path / "gateway.log"
    traffic = AccessLog(log, "demo")
    log.write_text(line(1, ended=before - 0.1) + line(2))
    assert numbers(traffic.read()) == [2]


def test_a_line_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    traffic = AccessLog(log, "demo")
    assert traffic.read() == []
    text = line(1)
    log.write_text(text[:20])
    assert traffic.read() == []
    with log.open("a") as stream:
        stream.write(text[20:])
    assert numbers(traffic.read()) == [1]


@pytest.mark.parametrize("rotations", [1, 2, 3])
def test_rotations_lose_nothing(tmp_path: Path, rotations: int) -> None:
    log = tmp_path / "gateway.log"
    write(log, 0)
    traffic = AccessLog(log, "demo")
    write(log, 1)
    assert numbers(traffic.read()) == [1]
    for number in range(rotations):
        write(log, 10 + number)
        rotate(log)
    assert numbers(traffic.read()) == [10 + number for number in range(rotations)]
    write(log, 99)
    assert numbers(traffic.read()) == [99]


def test_one_rotated_out_of_sight_goes_on_with_the_oldest(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    write(log, 0)
    traffic = AccessLog(log, "demo")
    held = os.open(log, os.O_RDONLY)  # so that no new file gets its inode
    for number in range(1, 7):
        rotate(log)
        write(log, number)
    assert numbers(traffic.read()) == [3, 4, 5, 6]
    os.close(held)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Gateway, Upstream, str]]:
    home, port = tmp_path / "home", free_port()
    with upstreams("7") as (upstream,):
        try:
            gateway = Gateway(home)
            gateway.apply(front(port, upstream))
            yield gateway, upstream, f"http://127.0.0.1:{port}"
        finally:
            Supervisor(home).shutdown()


def test_sees_what_the_gateway_answered_whole_cut_and_left(
    served: tuple[Gateway, Upstream, str],
) -> None:
    gateway, _, url = served
    traffic = AccessLog(gateway.log, "demo")
    requests: list[FinishedRequest] = []

    def one_more() -> FinishedRequest:
        count = len(requests) + 1
        until(lambda: requests.extend(traffic.read()) or len(requests) >= count)
        return requests[-1]

    with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
        client.post("/v1/chat/completions", json={}, headers={"X-Weighbridge-Version": "7"})
        plain = one_more()
        assert (plain.server, plain.status, plain.stream, plain.truncated, plain.pinned) == (
            "7",
            200,
            False,
            False,
            True,
        )
        client.post("/stream", json={})
        stream = one_more()
        assert (stream.stream, stream.truncated, stream.aborted, stream.pinned) == (
            True,
            False,
            False,
            False,
        )
        assert 1.1 < stream.seconds < 5
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/broken", json={})
        broken = one_more()
        assert (broken.server, broken.status, broken.truncated, broken.aborted) == (
            "7",
            200,
            True,
            False,
        )
        with client.stream("POST", "/stream", json={}):
            pass
        left = one_more()
        assert (left.truncated, left.aborted) == (False, True)
        client.post("/v1/chat/completions", json={}, headers={"X-Weighbridge-Version": "9"})
        nowhere = one_more()
        assert (nowhere.server, nowhere.status, nowhere.truncated) == ("", 404, False)
