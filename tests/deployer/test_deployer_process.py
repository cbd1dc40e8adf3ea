"""The deployer as a process: how it starts, ends and comes back, beside a real MLflow."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.mlflow_server import CALLS_THIS_MACHINE, mlflow_server
from tests.waiting import soon
from tests.warm.services import WarmServices
from weighbridge.core import loopback, own_secrets
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, Registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def deployer(tmp_path: Path, warm_services: WarmServices) -> Iterator["Running"]:
    running = Running(warm_services, tmp_path / "home", tmp_path)
    yield running
    running.kill()


class Running:
    """`python -m weighbridge.deployer.deployer`, started and killed."""

    def __init__(self, services: WarmServices, home: Path, folder: Path, **settings: str) -> None:
        self._services = services
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self.environment = {
            **os.environ,
            "WEIGHBRIDGE_HOME": str(home),
            "WEIGHBRIDGE_DEPLOYER_PORT": str(self.port),
            "WEIGHBRIDGE_RECONCILE_SECONDS": "3600",
            "WEIGHBRIDGE_WEBHOOK_SECRET": "s3cret",
            "WEIGHBRIDGE_MLFLOW_PORT": str(free_port()),
            **settings,
        }
        self.environment.pop("PREFECT_API_URL", None)
        self.process: Any = None

    def start(self) -> None:
        with (self._folder / "deployer.log").open("ab") as log:
            command = [sys.executable, "-m", "weighbridge.deployer.deployer"]
            self.process = self._services.start(
                "the deployer", command, log, cwd=ROOT, env=self.environment
            )

    def log(self) -> str:
        return (self._folder / "deployer.log").read_text()

    def status(self) -> Any:
        try:
            return loopback.get(f"{self.url}/status").json()
        except httpx.HTTPError:
            return {}

    def kill(self, number: int = signal.SIGKILL) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        return int(self.process.wait(20))


def test_it_runs_comes_back_after_a_kill_and_ends_at_once_when_told_to(deployer: Running) -> None:
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
        deployer.start()
        assert soon(lambda: deployer.status().get("mlflow", {}).get("answers"), 120), deployer.log()
        began = time.monotonic()
        assert deployer.kill(number) == status
        assert time.monotonic() - began < 2
    assert "Traceback" not in deployer.log()


def test_a_taken_port_ends_it_with_one_line(deployer: Running) -> None:
    with socket.create_server(("127.0.0.1", deployer.port)):
        deployer.start()
        assert deployer.process is not None
        assert deployer.process.wait(120) == 4
    assert "WEIGHBRIDGE_DEPLOYER_PORT" in deployer.log()
    assert "Traceback" not in deployer.log()


@pytest.fixture
def mlflow(tmp_path: Path, warm_services: WarmServices) -> Iterator[tuple[str, int]]:
    """A real MLflow server's address and process id."""
    folder = tmp_path / "server"
    folder.mkdir()
    with mlflow_server(folder, **CALLS_THIS_MACHINE, MLFLOW_WEBHOOK_CACHE_TTL="1") as server:
        yield server


@pytest.mark.slow
def test_an_alias_moved_in_mlflow_is_attended_at_once_and_mlflow_may_die(
    mlflow: tuple[str, int], warm_services: WarmServices, tmp_path: Path, workspace: Workspace
) -> None:
    uri, server = mlflow
    registry = Registry.connect(Settings(home=workspace.settings.home, tracking_uri=uri))
    with registry.release("demo", 1, params={}, tags={}) as run:
        with workspace.store.scratch() as scratch:
            (scratch / "files").mkdir()
            (scratch / "files" / "weights.bin").write_text("weights")
            artifact = workspace.store.add(scratch / "files", "safetensors", {})
        version = registry.register("demo", "base", artifact, run=run)
    registry.bind(Binding(target="demo", model="demo", deploy={}))
    home = workspace.settings.home
    deployer = Running(warm_services, home, tmp_path, WEIGHBRIDGE_TRACKING_URI=uri)
    try:
        deployer.start()

        def target() -> dict[str, Any]:
            found: dict[str, Any] = deployer.status().get("targets", {}).get("demo", {})
            return found

        assert soon(lambda: target().get("action") == "kept", 120), deployer.log()
        assert "no version of demo has the alias" in target()["detail"]
        assert soon(lambda: deployer.status()["webhook"]["set"])
        registry.promote(version)
        assert soon(
            lambda: target()["trigger"] == "webhook" and "never weighed" in target()["detail"]
        ), target()
        os.killpg(os.getpgid(server), signal.SIGKILL)
        token = own_secrets.read(workspace.settings.home, "deployer")
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.post(f"{deployer.url}/wake", headers=headers, trust_env=False)
        assert answer.status_code == 202
        assert soon(lambda: deployer.status()["mlflow"]["answers"] is False, 60)
        assert "Traceback" not in deployer.log()
    finally:
        deployer.kill()
