"""Where the platform's own services listen: chosen by `weighbridge up`, read by everybody else."""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from weighbridge.core import loopback, own_secrets
from weighbridge.core.files import replace_text
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings

HOST = "127.0.0.1"
WATCHDOG = "watchdog"
"""The service that watches the others, and listens nowhere: a file says that it looks."""
_LATE = 120.0
"""Seconds after which it does not look any more. One look at services that all hang takes one."""


class Addresses(BaseModel):
    """Ports on this machine. They listen for this machine alone."""

    model_config = ConfigDict(frozen=True)

    prefect: int
    mlflow: int
    deployer: int

    @property
    def prefect_api(self) -> str:
        return f"{self.url('prefect')}/api"

    def url(self, name: str) -> str:
        """Return the base URL of `prefect`, `mlflow` or `deployer`."""
        return f"http://{HOST}:{getattr(self, name)}"


def read(home: Path) -> Addresses | None:
    """Return what was chosen last; None where the platform has never been up."""
    with contextlib.suppress(FileNotFoundError, ValidationError):
        return Addresses.model_validate_json(_file(home).read_bytes())
    return None


def choose(settings: Settings) -> Addresses:
    """Return the ports of the settings; where those leave it open, remembered or free ones."""
    remembered = read(settings.home)
    configured = {
        "prefect": settings.prefect_port,
        "mlflow": settings.mlflow_port,
        "deployer": settings.deployer_port,
    }
    chosen = {
        name: port or (getattr(remembered, name) if remembered else free_port())
        for name, port in configured.items()
    }
    addresses = Addresses(**chosen)
    if addresses != remembered:
        replace_text(_file(settings.home), addresses.model_dump_json())
    return addresses


def answers(url: str, timeout: float = 5.0) -> bool:
    """Whether a service says that it is well."""
    try:
        return bool(loopback.get(url, timeout).is_success)
    except httpx.HTTPError:
        return False


def watchdog_file(home: Path) -> Path:
    """Return the file that the watchdog touches at every look."""
    return home / "run" / "watchdog.json"


def watchdog_looks(home: Path, since: float) -> bool:
    """Whether the watchdog, whose process started at this Unix time, has looked just now."""
    with contextlib.suppress(FileNotFoundError):
        return watchdog_file(home).stat().st_mtime > max(since, time.time() - _LATE)
    return False


def watchdog_restarts(home: Path) -> dict[str, float]:
    """Return the Unix time at which the watchdog last started each service again."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        restarts: dict[str, float] = json.loads(watchdog_file(home).read_text())
        return restarts
    return {}


def _file(home: Path) -> Path:
    return home / "run" / "platform.json"


def home_mark(home: Path) -> str:
    """Return what tells a home from the others of a machine, and says nothing of its path."""
    return hashlib.sha256(str(home).encode()).hexdigest()[:8]


def deployer_url(settings: Settings) -> str:
    """Return the address at which this home's deployer listens, if it runs."""
    ports = read(settings.home)
    # One that no `up` has started goes by the settings, as in a container.
    return ports.url("deployer") if ports else f"http://{HOST}:{settings.deployer_port}"


def deployer_status(settings: Settings) -> dict[str, Any] | None:
    """Return what this home's deployer says of itself and its targets; None where it does not."""
    try:
        answer = loopback.get(f"{deployer_url(settings)}/status")
        document = answer.json() if answer.is_success else None
    except (httpx.HTTPError, ValueError):
        return None
    # That of another home may listen there, or any other program.
    ours = isinstance(document, dict) and document.get("home") == home_mark(settings.home)
    return document if ours else None


def wake_deployer(home: Path, target: str, trigger: str) -> bool:
    """Have the deployer look at a target (empty: all) now; False where none answers."""
    ports = read(home)
    if ports is None:
        return False
    request = {"target": target, "trigger": trigger}
    token = own_secrets.read(home, "deployer")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{ports.url('deployer')}/wake"
    try:
        return loopback.post(url, request, headers=headers).is_success
    except httpx.HTTPError:
        return False
