"""How a service of the platform is: what supervisord says of it, and whether it answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import httpx
from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core import loopback, service_addresses
from weighbridge.core.service_addresses import HOST, WATCHDOG, Addresses
from weighbridge.core.settings import Settings
from weighbridge.flows import deployments, prefect_settings
from weighbridge.services.programs import log_of, service_names
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.supervisor import Supervisor

WORKER_LATE = 60.0
"""Seconds after its last heartbeat at which a worker is not there any more."""
WORKERS: Final = f"work_pools/{deployments.POOL}/workers/filter"
"""Where Prefect's API tells of the workers of our pool."""
ELSEWHERE: Final = "ELSEWHERE"
"""The state of a service that this home does not run (elsewhere.py)."""


class ServiceStatus(BaseModel):
    """A service of the platform, as seen from outside."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str = Field(
        description="As supervisord says: RUNNING, STARTING, BACKOFF, FATAL, …; STOPPED: not up; "
        "ELSEWHERE: not run by this home, and asked at its address."
    )
    since: float = Field(
        0.0, description="Unix time at which its process started; 0: it does not run."
    )
    address: str = ""
    answers: bool = Field(False, description="An answer came just now.")
    restarted: float = Field(
        0.0, description="Unix time at which it was started again because it hung; 0: never."
    )
    log: Path
    detail: str = Field("", description="What keeps it from its work, as it says itself.")

    @property
    def is_elsewhere(self) -> bool:
        """Whether this home does not run it."""
        return self.state == ELSEWHERE


def all_services(settings: Settings, supervisor: Supervisor) -> list[ServiceStatus]:
    """Return how every service is, whether it runs or not."""
    ports = service_addresses.read(settings.home)
    restarts = service_addresses.watchdog_restarts(settings.home)
    names = service_names(settings)
    # At once: each may take seconds where it hangs.
    with ThreadPoolExecutor(len(names)) as pool:
        others = pool.map(lambda name: service_status(name, ports, supervisor), names)
        services = [gateway_status(settings.home, supervisor), *others]
    return [
        service.model_copy(update={"restarted": restarts.get(service.name, 0.0)})
        for service in services
    ]


def with_deployers_trouble(
    services: Sequence[ServiceStatus], deployer: Mapping[str, Any] | None
) -> list[ServiceStatus]:
    """Return the services, and with the deployer why it looks after no target, where that is so.

    Args:
        services: all of them.
        deployer: what the deployer says of itself; None where it does not answer.
    """
    mlflow = (deployer or {}).get("mlflow", {})
    trouble = mlflow["detail"] if mlflow.get("answers") is False else ""
    return [
        service.model_copy(update={"detail": trouble}) if service.name == "deployer" else service
        for service in services
    ]


def gateway_status(home: Path, supervisor: Supervisor) -> ServiceStatus:
    """Return how the gateway is."""
    state = supervisor.state("gateway")
    gateway = Gateway(home)
    up = bool(state and state.up)
    return ServiceStatus(
        name="gateway",
        state=state.state if state else "STOPPED",
        since=state.since if state and up else 0.0,
        address=f"http://{HOST}:{gateway.metrics_port}/metrics" if up else "",
        answers=up and gateway.answers(),
        log=log_of("gateway", supervisor.logs),
    )


def service_status(name: str, ports: Addresses | None, supervisor: Supervisor) -> ServiceStatus:
    """Return how a service is; without ports it was never up."""
    state = supervisor.state(name)
    if state is None or not state.up or ports is None:
        stopped = state.state if state else "STOPPED"
        return ServiceStatus(name=name, state=stopped, log=log_of(name, supervisor.logs))
    return ServiceStatus(
        name=name,
        state=state.state,
        since=state.since,
        # A worker asks Prefect for work, the watchdog looks; nobody asks them anything.
        address=ports.url(name) if name in Addresses.model_fields else "",
        answers=_answers(name, ports, supervisor, state.since),
        log=log_of(name, supervisor.logs),
    )


def _answers(name: str, ports: Addresses, supervisor: Supervisor, since: float) -> bool:
    checks: Mapping[str, Callable[[], bool]] = {
        "prefect": lambda: service_addresses.answers(f"{ports.prefect_api}/health"),
        "mlflow": lambda: service_addresses.answers(f"{ports.url('mlflow')}/health"),
        "deployer": lambda: service_addresses.answers(f"{ports.url('deployer')}/health"),
        "worker": lambda: _polls(ports.prefect_api, supervisor.home, since),
        WATCHDOG: lambda: service_addresses.watchdog_looks(supervisor.home, since),
    }
    return checks[name]()


def _polls(api: str, home: Path, since: float) -> bool:
    """Whether a worker of our pool, started at this time, tells Prefect that it is there."""
    try:
        response = loopback.post(f"{api}/{WORKERS}", {}, auth=prefect_settings.login(home))
    except httpx.HTTPError:
        return False
    return response.is_success and is_polled(response, since)


def is_polled(response: httpx.Response, since: float) -> bool:
    """Whether Prefect's answer tells of a worker that is there, and was started after that time."""
    # Prefect goes on calling a worker that was killed, or stands still, ONLINE for a while.
    earliest = max(since, time.time() - WORKER_LATE)
    return any(
        worker["status"] == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > earliest
        for worker in response.json()
    )
