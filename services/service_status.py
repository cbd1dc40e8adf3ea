"""How a service of the platform is: what supervisord says of it, and whether it answers."""

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core import service_addresses
from weighbridge.core.service_addresses import HOST, Addresses
from weighbridge.flows import deployments
from weighbridge.services.programs import log_of
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.supervisor import Supervisor


class ServiceStatus(BaseModel):
    """A service of the platform, as seen from outside."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str = Field(
        description="As supervisord says: RUNNING, STARTING, BACKOFF, FATAL, …; STOPPED: not up."
    )
    since: float = Field(
        0.0, description="Unix time at which its process started; 0: it does not run."
    )
    address: str = ""
    answers: bool = False
    log: Path


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
        answers=up and gateway.running(),
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
        # A worker asks Prefect for work; nobody asks it anything.
        address=ports.url(name) if name != "worker" else "",
        answers=_answers(name, ports, state.since),
        log=log_of(name, supervisor.logs),
    )


def _answers(name: str, ports: Addresses, since: float) -> bool:
    checks: Mapping[str, Callable[[], bool]] = {
        "prefect": lambda: service_addresses.answers(f"{ports.prefect_api}/health"),
        "mlflow": lambda: service_addresses.answers(f"{ports.url('mlflow')}/health"),
        "deployer": lambda: service_addresses.answers(f"{ports.url('deployer')}/health"),
        "worker": lambda: _polls(ports.prefect_api, since),
    }
    return checks[name]()


def _polls(api: str, since: float) -> bool:
    """Whether a worker of our pool has told Prefect since then that it is there."""
    try:
        response = httpx.post(
            f"{api}/work_pools/{deployments.POOL}/workers/filter",
            json={},
            timeout=5,
            trust_env=False,
        )
    except httpx.HTTPError:
        return False
    if not response.is_success:
        return False
    # Prefect goes on calling a worker that was killed ONLINE for a while.
    return any(
        worker["status"] == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() > since
        for worker in response.json()
    )
