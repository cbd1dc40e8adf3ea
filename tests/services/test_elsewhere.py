"""status where others run the services: they are asked, and not called stopped."""

import base64
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner

from tests.deployer.bench import Bench
from tests.stand_ins.http_server import Handler, Server
from weighbridge.cli.main import cli
from weighbridge.core import service_addresses
from weighbridge.core.workspace import Workspace
from weighbridge.services.service_status import WORKERS

LOGIN = "weighbridge:s3cret"


class Elsewhere:
    """MLflow and Prefect of somebody, at one address, as they answer."""

    def __init__(self) -> None:
        self.status = {"/health": 200, "/api/health": 200}
        self.heartbeat = time.time()
        """Of the worker, a Unix time."""
        self.pages: dict[str, bytes] = {}
        """What is answered at a path in place of what belongs there."""
        elsewhere = self

        class Answers(Handler):
            def do_GET(self) -> None:
                assert "Authorization" not in self.headers, "nobody needs to log in for that"
                page = elsewhere.pages.get(self.path, b"")
                self.answer(page, elsewhere.status[self.path])

            def do_POST(self) -> None:
                self.body()
                login = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"
                if self.path != f"/api/{WORKERS}" or self.headers["Authorization"] != login:
                    self.answer(status=401)
                    return
                if page := elsewhere.pages.get(self.path):
                    self.answer(page)
                    return
                heartbeat = datetime.fromtimestamp(elsewhere.heartbeat, UTC).isoformat()
                self.answer_json([{"status": "ONLINE", "last_heartbeat_time": heartbeat}])

        self.server = Server(Answers)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    elsewhere = Elsewhere()
    with elsewhere.server as server:
        with_login = server.url.replace("//", "//user:hunter2@")
        monkeypatch.setenv("WEIGHBRIDGE_TRACKING_URI", with_login)
        monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", LOGIN)
        yield elsewhere


@pytest.fixture
def container(
    elsewhere: Elsewhere, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Elsewhere]:
    """What a container of the compose file sees, beside that of the deployer."""
    bench = Bench(workspace.settings.home)
    monkeypatch.setenv("WEIGHBRIDGE_DEPLOYER_PORT", bench.deployer.url.rpartition(":")[2])
    try:
        bench.start()
        yield elsewhere
    finally:
        bench.close()


def status(*options: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["status", *options], catch_exceptions=False)
    return done.exit_code, done.output


def services() -> dict[str, Any]:
    _, document = status("--json")
    return {service["name"]: service for service in json.loads(document)["services"]}


def test_in_a_container_what_others_run_is_asked_at_its_address(container: Elsewhere) -> None:
    code, shown = status()
    assert code == 0, shown
    assert "platform is down" not in shown
    assert "not run by this installation, but asked: prefect, mlflow, deployer, worker" in shown
    assert "hunter2" not in shown
    found = services()
    # Nobody but `up` starts a watchdog; the gateway is this home's own, and has nothing to serve.
    assert list(found) == ["gateway", "prefect", "mlflow", "deployer", "worker"]
    assert found.pop("gateway")["state"] == "STOPPED"
    assert {service["state"] for service in found.values()} == {"ELSEWHERE"}
    assert all(service["answers"] for service in found.values())
    assert found["mlflow"]["address"] == container.server.url
    assert found["prefect"]["address"] == f"{container.server.url}/api"
    assert found["deployer"]["since"] == pytest.approx(time.time(), abs=60)


def test_what_does_not_answer_there_is_not_called_stopped(container: Elsewhere) -> None:
    container.status["/health"] = 503
    container.heartbeat -= 3600
    code, shown = status()
    assert code == 4
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert f"mlflow does not answer — {container.server.url}" in rows
    assert "worker does not answer — —" in rows
    assert [row for row in rows if "stopped" in row] == ["gateway stopped — —"]


def test_who_is_refused_by_prefect_says_nothing_of_the_worker(
    container: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    found = services()
    assert "worker" not in found
    assert found["prefect"]["answers"]


def test_a_page_in_place_of_prefects_answer_says_nothing_of_the_worker(
    container: Elsewhere,
) -> None:
    container.pages[f"/api/{WORKERS}"] = b"<html>log in</html>"
    assert "worker" not in services()


def test_an_address_that_is_none_does_not_answer(
    elsewhere: Elsewhere, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://localhost:port/api")
    prefect = services()["prefect"]
    assert (prefect["address"], prefect["answers"]) == ("http://localhost:port/api", False)


def test_another_program_at_the_deployers_port_is_no_deployer(
    elsewhere: Elsewhere, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.status["/status"], elsewhere.pages["/status"] = 200, b'["well"]'
    monkeypatch.setenv("WEIGHBRIDGE_DEPLOYER_PORT", elsewhere.server.url.rpartition(":")[2])
    assert services()["deployer"]["state"] == "STOPPED"


def test_beside_a_deployer_that_was_not_brought_up_nothing_else_is_expected(
    container: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHBRIDGE_TRACKING_URI")
    monkeypatch.delenv("PREFECT_API_URL")
    assert list(services()) == ["gateway", "deployer"]


def test_an_mlflow_of_somebodys_is_no_platform(elsewhere: Elsewhere, workspace: Workspace) -> None:
    code, shown = status()
    assert code == 0, shown
    assert "the platform is down; bring it up with: weighbridge up" in shown
    assert "not run by this installation, but asked: prefect, mlflow" in shown
    assert "stopped" not in shown
    found = services()
    assert found["deployer"]["state"] == "STOPPED"
    assert (found["mlflow"]["state"], found["mlflow"]["answers"]) == ("ELSEWHERE", True)


def test_of_a_platform_that_was_brought_up_only_somebodys_mlflow_is_elsewhere(
    elsewhere: Elsewhere, workspace: Workspace
) -> None:
    service_addresses.choose(workspace.settings)
    states = {name: service["state"] for name, service in services().items()}
    assert states.pop("mlflow") == "ELSEWHERE"
    assert set(states) == {"gateway", "prefect", "deployer", "worker", "watchdog"}
    assert set(states.values()) == {"STOPPED"}
