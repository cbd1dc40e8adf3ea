"""The end of a pod: nothing is cut that would have been answered."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from tests.stand_ins.http_server import Handler, Server
from weighbridge.serving import pod_drain


class Pod(Handler):
    """Tells what it is asked, and forgets one request at each look."""

    under_way: ClassVar[list[int]] = []
    drained: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        left = self.under_way.pop(0) if self.under_way else 0
        self.answer_json({"in_flight": left})

    def do_POST(self) -> None:
        self.drained.append(self.path)
        self.answer_json({"draining": True})


@pytest.fixture
def pod() -> Iterator[str]:
    Pod.under_way, Pod.drained = [], []
    with Server(Pod) as server:
        yield server.url


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_drain, "_POLL_SECONDS", 0.02)


def seconds(url: str, least: float, most: float) -> tuple[bool, float]:
    began = time.monotonic()
    return pod_drain.drained(url, least, most), time.monotonic() - began


def test_it_waits_for_what_is_under_way_and_no_longer(pod: str) -> None:
    Pod.under_way = [3, 2, 1]
    ended, took = seconds(pod, least=0, most=30)
    assert ended
    assert took < 10
    assert Pod.under_way == []
    assert Pod.drained == ["/drain"]


def test_clients_have_time_to_learn_of_it_though_nothing_is_under_way(pod: str) -> None:
    ended, took = seconds(pod, least=0.3, most=30)
    assert (ended, took >= 0.3) == (True, True)


def test_what_never_ends_is_given_up(pod: str) -> None:
    Pod.under_way = [1] * 1000
    ended, took = seconds(pod, least=0, most=0.3)
    assert (ended, took < 10) == (False, True)


def test_a_server_that_is_gone_holds_nothing_up() -> None:
    ended, took = seconds("http://127.0.0.1:1", least=0.1, most=30)
    assert (ended, took < 10) == (True, True)


def test_any_python_runs_it_by_its_path(pod: str) -> None:
    command = [sys.executable, "-I", "-S", pod_drain.__file__, pod, "--least", "0", "--most", "5"]
    subprocess.run(command, check=True, timeout=30)
    assert Pod.drained == ["/drain"]
