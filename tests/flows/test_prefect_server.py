"""The API a run reports to is there for the run and gone with it; its records stay readable."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.warm.services import WarmServices
from weighbridge.core import fast_start
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings
from weighbridge.flows.interrupted_runs import mark_interrupted
from weighbridge.flows.prefect_server import prefect_api
from weighbridge.flows.prefect_settings import users_api

pytestmark = pytest.mark.usefixtures("warm_services")
ROOT = Path(__file__).resolve().parents[2]
FIVE_TASKS = [sys.executable, "-m", "tests.flows.five_tasks"]


@pytest.fixture(autouse=True)
def _no_api_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    # One that nobody can be reached through.
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")


class Run:
    """A process that runs a flow of five tasks, and begins with its libraries imported."""

    def __init__(self, services: WarmServices, name: str, *words: object) -> None:
        command = [*FIVE_TASKS, name, *map(str, words)]
        self.process = services.origin.start(command, subprocess.PIPE, ROOT, os.environ)
        assert self.process.stdout
        self.output = self.process.stdout

    def ended(self) -> tuple[int, str]:
        """Its status and what it wrote."""
        with self.output:
            return self.process.wait(180), self.output.read()


COMPLETED = (0, "running\n" * 5)


def query(what: str, **body: Any) -> list[dict[str, Any]]:
    """What Prefect's API answers to a filter."""
    from prefect.client.orchestration import get_client

    path: Any = f"/{what}/filter"
    with get_client(sync_client=True) as client:
        found: list[dict[str, Any]] = client.request("POST", path, json=body).json()
        return found


def states(path: str) -> dict[str, str]:
    return {run["name"]: run["state_type"] for run in query(path)}


def test_a_run_is_found_afterwards_in_the_database_under_home() -> None:
    command = [*FIVE_TASKS, "first", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (*COMPLETED, "")
    with prefect_api(Settings()) as users:
        assert users is None
        assert states("flow_runs") == {"first": "COMPLETED"}
        assert states("task_runs") == {f"stage-{number}": "COMPLETED" for number in range(5)}


def test_two_runs_at_once_on_one_home_are_both_recorded_whole(warm_services: WarmServices) -> None:
    both = [Run(warm_services, name, 0.2) for name in ("one", "two")]
    assert [run.ended() for run in both] == [COMPLETED, COMPLETED]
    with prefect_api(Settings()):
        assert states("flow_runs") == {"one": "COMPLETED", "two": "COMPLETED"}
        assert [run["state_type"] for run in query("task_runs")] == ["COMPLETED"] * 10


def test_a_killed_run_leaves_no_process_and_is_crashed_for_the_next_one(
    warm_services: WarmServices,
) -> None:
    run = Run(warm_services, "killed", 60)
    assert run.output.readline() == "running\n"
    time.sleep(2)  # the server writes task runs once a second
    os.kill(run.process.pid, signal.SIGKILL)
    assert run.ended() == (-signal.SIGKILL, "")
    with prefect_api(Settings()):
        assert states("flow_runs") == {"killed": "CRASHED"}
        assert states("task_runs") == {"stage-0": "CRASHED"}
        assert "killed" in query("flow_runs")[0]["state"]["message"]


@pytest.mark.slow
def test_the_public_way_records_a_run_and_marks_a_killed_one(
    monkeypatch: pytest.MonkeyPatch, warm_services: WarmServices
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_FAST_START", "false")
    whole = Run(warm_services, "whole", 0, warm_services.folder, warm_services.owner)
    assert whole.ended() == COMPLETED
    killed = Run(warm_services, "killed", 60)  # its server begins as a user's does
    assert killed.output.readline() == "running\n"
    time.sleep(2)  # the server writes task runs once a second
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.ended() == (-signal.SIGKILL, "")
    with prefect_api(Settings()) as users:
        assert users is None
        assert states("flow_runs") == {"whole": "COMPLETED", "killed": "CRASHED"}
        of_the_first = [run for run in query("task_runs") if run["state_type"] == "COMPLETED"]
        assert len(of_the_first) == 5


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Imported before `caplog` begins, whose handler it takes off, and where a home can be made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        from prefect import flow

    return flow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("prefect.server.api.server", "API_ROUTERS"),
        ("prefect.server.database.dependencies", "temporary_database_config"),
        ("prefect.events.worker", "EventsWorker"),
        ("prefect.server.utilities.messaging.memory", "Topic.by_name"),
    ],
)
def test_a_name_that_is_gone_from_prefect_is_said_and_a_flow_runs_all_the_same(
    flow: Any,
    module: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(fast_start, "_warned", set())
    owner, _, attribute = f"{module}.{name}".rpartition(".")
    monkeypatch.delattr(f"{owner}.{attribute}")
    with prefect_api(Settings()):
        assert flow(name="mine", flow_run_name="all the same")(lambda: 1)() == 1
        assert states("flow_runs") == {"all the same": "COMPLETED"}
    [warning] = [line for line in caplog.messages if "has changed inside" in line]
    assert attribute in warning
    assert "WEIGHBRIDGE_FAST_START=false" in warning


def test_a_run_of_a_living_process_is_not_called_crashed() -> None:
    with prefect_api(Settings()):
        from prefect import flow

        assert flow(mark_interrupted)() == []


def test_a_new_home_gets_its_tables_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for home in ("a", "b"):
        with prefect_api(Settings(home=tmp_path / home, cache=cache)):
            assert query("flow_runs") == []
    assert [path.suffix for path in cache.iterdir()] == [".db"]


def test_the_api_of_the_users_environment_is_used(tmp_path: Path) -> None:
    with prefect_api(Settings()):
        theirs = os.environ["PREFECT_API_URL"]
        with prefect_api(Settings(home=tmp_path / "other")) as users:
            assert users == theirs
            assert query("flow_runs") == []
    assert not (tmp_path / "other").exists()


def test_an_api_of_the_user_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    with pytest.raises(
        Unavailable, match=r"reaching Prefect's API at http://127.*refused.*unset PREFECT_API_URL"
    ):
        prefect_api(Settings()).__enter__()


def test_the_api_of_the_users_active_profile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    profiles = (
        '[profiles.local]\n[profiles.team]\nPREFECT_API_URL = "https://prefect.example/api"\n'
    )
    (tmp_path / "profiles.toml").write_text(f'active = "team"\n{profiles}')
    assert users_api() == "https://prefect.example/api"
    (tmp_path / "profiles.toml").write_text(f'active = "local"\n{profiles}')
    assert users_api() is None


def test_the_environment_is_as_before_when_it_is_over() -> None:
    before = dict(os.environ)
    with prefect_api(Settings()):
        assert os.environ["PREFECT_API_URL"].startswith("http://127.0.0.1:")
    assert dict(os.environ) == before


def test_a_damaged_database_is_named_with_what_to_do() -> None:
    home = Settings().home / "prefect"
    home.mkdir(parents=True)
    (home / "prefect.db").write_bytes(b"no database" * 1000)
    with pytest.raises(
        Unavailable, match=r"Prefect's database: file is not a database; move .*prefect\.db away"
    ):
        prefect_api(Settings()).__enter__()


def test_importing_it_imports_neither_prefect_nor_its_server() -> None:
    code = "import sys, weighbridge.flows.prefect_server; "
    code += "print({'prefect', 'sqlalchemy', 'fastapi'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
