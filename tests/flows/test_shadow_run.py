"""A shadow run shows all of the work, and the work does not notice what becomes of Prefect."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flows.shadowed_work import TOLD
from tests.mlflow_server import is_well
from tests.stand_ins.http_server import Handler, Server
from tests.waiting import soon
from tests.warm.services import WarmServices
from tests.warm.starts import Started
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process, free_port
from weighbridge.core.settings import Settings
from weighbridge.flows.interrupted_runs import mark_crashed
from weighbridge.flows.prefect_server import prefect_api
from weighbridge.flows.redeploy import state_of
from weighbridge.flows.shadow_run import ShadowedJob, with_shadow_run
from weighbridge.rollout.reconcile import ReconcileResult

logger = logging.getLogger("weighbridge.test")
DEPLOYED = ReconcileResult("deployed", "version 7 serves", "7")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A real Prefect server for the test."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    logging.getLogger("weighbridge").setLevel(logging.INFO)
    with prefect_api(Settings()):
        yield
        settled()


def settled() -> None:
    """Wait until no shadow run is left."""
    for thread in threading.enumerate():
        if thread.name.startswith("shadow "):
            thread.join(30)


def query(what: str, **body: Any) -> list[dict[str, Any]]:
    from prefect.client.orchestration import get_client

    path: Any = f"/{what}/filter"
    with get_client(sync_client=True) as client:
        runs: list[dict[str, Any]] = client.request("POST", path, json=body).json()
        return runs


def work(result: ReconcileResult = DEPLOYED, seconds: float = 0.0) -> Callable[[], ReconcileResult]:
    def call() -> ReconcileResult:
        logger.info("starting version 7")
        time.sleep(seconds)
        logger.warning("10 % of the requests go to it")
        return result

    return call


def test_the_run_has_the_works_parameters_lines_and_outcome(api: None) -> None:
    def elsewhere() -> None:
        logger.info("of another target")

    other = threading.Thread(target=elsewhere)

    def call() -> ReconcileResult:
        other.start()
        other.join()
        return work()()

    assert (
        with_shadow_run(ShadowedJob("demo", "webhook"), call, state_of, frozenset({"mine"}))
        == DEPLOYED
    )
    settled()
    (run,) = query("flow_runs")
    assert (run["name"], run["state_type"], run["state"]["name"]) == (
        "redeploy demo",
        "COMPLETED",
        "Deployed",
    )
    assert run["state"]["message"] == "version 7 serves"
    assert (run["parameters"], run["tags"]) == ({"target": "demo", "trigger": "webhook"}, ["mine"])

    def lines() -> list[str]:
        return [line["message"] for line in query("logs", sort="TIMESTAMP_ASC")]

    assert soon(lambda: "10 % of the requests go to it" in lines(), 30)
    assert lines().index("starting version 7") < lines().index("10 % of the requests go to it")
    assert "of another target" not in lines()


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (ReconcileResult("failed", "it never answered", "6"), ("FAILED", "Failed")),
        (ReconcileResult("kept", "gone", "6"), ("COMPLETED", "Kept")),
    ],
)
def test_what_was_tried_in_vain_is_failed_in_its_own_words(
    api: None, result: ReconcileResult, state: tuple[str, str]
) -> None:
    assert with_shadow_run(ShadowedJob("demo", "webhook"), work(result), state_of) == result
    settled()
    (run,) = query("flow_runs")
    assert (run["state_type"], run["state"]["name"]) == state
    assert result.detail in run["state"]["message"]


def test_an_error_of_the_work_reaches_its_caller_and_the_page(api: None) -> None:
    def broken() -> ReconcileResult:
        raise Unavailable("reading the alias", "MLflow is gone")

    with pytest.raises(Unavailable, match="MLflow is gone"):
        with_shadow_run(ShadowedJob("demo", "webhook"), broken, state_of)
    settled()
    (run,) = query("flow_runs")
    assert (run["state_type"], run["state"]["message"]) == (
        "FAILED",
        "reading the alias: MLflow is gone",
    )


def test_runs_that_a_killed_process_left_are_crashed(api: None) -> None:
    go_on = threading.Event()

    def call() -> ReconcileResult:
        assert soon(lambda: [run["state_type"] for run in query("flow_runs")] == ["RUNNING"], 30)
        time.sleep(1.1)
        assert mark_crashed("another", time.time()) == []
        assert len(mark_crashed("mine", time.time())) == 1
        go_on.set()
        return DEPLOYED

    with_shadow_run(ShadowedJob("demo", "webhook"), call, state_of, frozenset({"mine"}))
    assert go_on.is_set()


@pytest.fixture
def pretender() -> Iterator[tuple[str, threading.Event]]:
    """Says that it is well, and answers nothing else until the event is set, and then with an
    error.
    """
    release = threading.Event()

    class Pretender(Handler):
        def do_GET(self) -> None:
            self.body()
            if self.path.endswith("/health"):
                self.answer()
            else:
                release.wait(30)
                self.answer(status=500)

        do_POST = do_GET

    with Server(Pretender) as server:
        yield f"{server.url}/api", release
        release.set()


ROOT = Path(__file__).resolve().parents[2]


class Work:
    """A process that works for so many seconds, with this API.

    It begins with its libraries imported where it is given the services that do.
    """

    def __init__(
        self, url: str, seconds: float, home: Path, services: WarmServices | None = None
    ) -> None:
        environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(home)}
        command = [sys.executable, "-m", "tests.flows.shadowed_work", str(seconds)]
        self._process: subprocess.Popen[str] | Started
        if services:
            self._process = services.origin.start(command, subprocess.PIPE, ROOT, environment)
        else:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def told(self) -> Iterator[str]:
        """What it tells, until it ends."""
        assert self._process.stdout
        with self._process.stdout as output:
            for line in output:
                if line.startswith(TOLD):
                    yield line.removeprefix(TOLD).rstrip()
        assert self._process.wait(60) == 0


def test_a_prefect_that_hangs_or_is_not_there_delays_nothing(
    pretender: tuple[str, threading.Event], tmp_path: Path, warm_services: WarmServices
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/api"
    for url, services in ((pretender[0], None), (nobody, warm_services)):
        work = Work(url, 0.5, tmp_path, services)
        assert [*work.told()] == ["working", "deployed", "in time"]


@pytest.mark.slow
def test_a_prefect_that_is_killed_in_the_middle_changes_nothing(
    tmp_path: Path, warm_services: WarmServices
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [
        sys.executable,
        "-m",
        "prefect",
        "server",
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-ui",
    ]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": url,
        "DO_NOT_TRACK": "1",
    }

    with Process(
        "prefect server", command, log=tmp_path / "log", cwd=tmp_path, env=environment
    ) as server:
        server.wait_until(lambda: is_well(url), timeout=120)
        told = Work(url, 6, tmp_path, warm_services).told()
        assert next(told) == "working"

        def running() -> bool:
            runs = httpx.post(
                f"{url}/flow_runs/filter", json={}, timeout=10, trust_env=False
            ).json()
            return [run["state_type"] for run in runs] == ["RUNNING"]

        assert soon(running, 30)
        os.killpg(os.getpgid(server.pid), signal.SIGKILL)
    assert [*told] == ["deployed", "in time"]
