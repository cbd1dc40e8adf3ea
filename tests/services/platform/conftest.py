"""A platform that is up."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import MACHINE_CACHE
from weighbridge.core import loopback, service_addresses
from weighbridge.core.settings import Settings
from weighbridge.flows import prefect_settings
from weighbridge.services.platform import Platform
from weighbridge.serving.supervisor import Supervisor


def settings(home: Path, **changes: Any) -> Settings:
    anywhere = {"prefect_port": 0, "mlflow_port": 0, "deployer_port": 0, "metrics_port": 0}
    return Settings(home=home, cache=MACHINE_CACHE, **anywhere, **changes)


@pytest.fixture(scope="module")
def _metrics_anywhere() -> Iterator[None]:
    """The gateway reads its port from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_METRICS_PORT", "0")
        patch.setenv("FOR_NOBODY_HERE", "hidden")
        patch.delenv("PREFECT_API_URL", raising=False)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, _metrics_anywhere: None) -> Iterator[Path]:
    """Of a platform that is up; tests leave it up."""
    home = tmp_path_factory.mktemp("platform")
    # As homes were made before.
    home.chmod(0o755)
    try:
        Platform(settings(home)).up()
        yield home
    finally:
        Platform(settings(home)).down()


def processes(home: Path) -> dict[str, int]:
    return {state.name: state.pid for state in Supervisor(home).states()}


def command_lines() -> str:
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return "\n".join(found)


def prefect(home: Path, path: str, **body: Any) -> httpx.Response:
    ports = service_addresses.read(home)
    assert ports is not None
    url, login = f"{ports.prefect_api}/{path}", prefect_settings.login(home)
    return loopback.post(url, body, 60, auth=login)
