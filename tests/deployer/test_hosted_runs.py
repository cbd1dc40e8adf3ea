"""Runs that the deployer carries out: one at a time of each flow, and never lost without a word."""

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from weighbridge.core import own_secrets
from weighbridge.core.files import replace_text
from weighbridge.core.service_addresses import Addresses
from weighbridge.deployer import hosted_runs, run_request
from weighbridge.deployer.hosted_runs import HostedRuns, Outcome
from weighbridge.deployer.webhook_receiver import Callbacks, Receiver, SeenDeliveries, application

RUN = uuid.UUID("7e6e4a52-3c55-4e0b-9f0e-7d7ad7c1d5a1")
Begin = Callable[[str, uuid.UUID], "Future[Outcome]"]


class Prefect:
    """What carries a run out, in place of Prefect: it waits until it is told to go on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def carry_out(self, function: Any, flow_run: uuid.UUID) -> None:
        self.begun.append(function)
        assert flow_run == RUN
        assert self.go_on.wait(20)
        if self.error:
            raise self.error


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefect]:
    stand_in = Prefect()
    monkeypatch.setattr("weighbridge.flows.prefect_internals.carry_out", stand_in.carry_out)
    monkeypatch.setattr(hosted_runs, "_function_of", lambda flow: flow)
    yield stand_in
    stand_in.go_on.set()


def test_a_second_run_of_the_flow_is_refused_and_one_of_another_flow_is_not(
    prefect: Prefect,
) -> None:
    runs = HostedRuns()
    monitor = runs.begin("monitor", RUN)
    assert runs.begin("monitor", RUN).result(0) == "refused"
    reconcile = runs.begin("reconcile", RUN)
    prefect.go_on.set()
    assert (monitor.result(20), reconcile.result(20)) == ("over", "over")
    assert runs.begin("monitor", RUN).result(20) == "over"
    assert sorted(prefect.begun) == ["monitor", "monitor", "reconcile"]


def test_long_flows_are_refused(prefect: Prefect) -> None:
    for flow in ("release", "redeploy", "os"):
        assert HostedRuns().begin(flow, RUN).result(0) == "refused"
    assert prefect.begun == []


def test_one_that_breaks_off_is_said_and_the_next_one_is_taken(prefect: Prefect) -> None:
    runs, prefect.error = HostedRuns(), ValueError("of Prefect's")
    prefect.go_on.set()
    assert runs.begin("monitor", RUN).result(20) == "broken"
    prefect.error = None
    assert runs.begin("monitor", RUN).result(20) == "over"


def test_where_prefect_has_changed_inside_the_run_has_a_process(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_runs, "warn_name_is_gone", lambda *_: None)
    prefect.error = ImportError("no run_flow")
    prefect.go_on.set()
    assert HostedRuns().begin("monitor", RUN).result(20) == "refused"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(RUN))
    return tmp_path


def listening(home: Path, begin: Begin, token: str = "") -> Receiver:
    """A deployer's receiver, as those find it that look for the deployer of this home."""
    token = token or own_secrets.ensure(home, "deployer")
    callbacks = Callbacks(lambda _: None, lambda *_: None, dict, begin)
    seen = SeenDeliveries(home / "seen")
    receiver = Receiver(application(callbacks, SecretStr(""), SecretStr(token), seen), 0)
    receiver.start()
    _note(home, int(receiver.url.rpartition(":")[2]))
    return receiver


def _note(home: Path, port: int) -> None:
    own_secrets.ensure(home, "deployer")
    addresses = Addresses(prefect=1, mlflow=1, deployer=port)
    replace_text(home / "run" / "platform.json", addresses.model_dump_json())


@pytest.mark.parametrize(("outcome", "status"), [("over", 0), ("broken", 1), ("refused", None)])
def test_what_the_deployer_says_is_how_the_request_ends(
    home: Path, outcome: Outcome, status: int | None
) -> None:
    def begin(flow: str, run: uuid.UUID) -> "Future[Outcome]":
        assert (flow, run) == ("monitor", RUN)
        done: Future[Outcome] = Future()
        done.set_result(outcome)
        return done

    receiver = listening(home, begin)
    try:
        assert run_request.request("monitor", str(RUN)) == status
    finally:
        receiver.stop()


def test_without_a_deployer_that_knows_us_the_run_is_done_by_prefects_own_engine(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def execv(program: str, arguments: list[str]) -> None:
        started.append(arguments[1:])
        raise SystemExit

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr("sys.argv", ["run_request", "monitor"])
    with pytest.raises(SystemExit):  # the platform has never been up
        run_request.main()
    _note(home, 1)
    with pytest.raises(SystemExit):  # nobody listens
        run_request.main()
    receiver = listening(home, lambda *_: Future(), token="another")
    with pytest.raises(SystemExit):
        run_request.main()
    receiver.stop()
    assert started == [["-m", "prefect.engine"]] * 3


def test_a_deployer_that_dies_meanwhile_leaves_a_run_that_crashed(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _note(home, listener.getsockname()[1])

        def take_and_die() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.close()

        threading.Thread(target=take_and_die, daemon=True).start()
        assert run_request.request("monitor", str(RUN)) == 1
