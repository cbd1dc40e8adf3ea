"""Services that this home counts on and does not run itself: asked at their addresses.

They are an MLflow server of the user's, and a Prefect; and where a deployer answers although
`weighbridge up` has never run in this home, as in containers (compose.yaml), all that it has.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from weighbridge.core import service_addresses
from weighbridge.core.settings import Settings
from weighbridge.flows.prefect_settings import users_api
from weighbridge.registry.mlflow_errors import without_login
from weighbridge.services.programs import SERVICES, log_of
from weighbridge.services.service_status import ELSEWHERE, WORKERS, ServiceStatus, is_polled
from weighbridge.serving.supervisor import Supervisor

TIMEOUT = 5.0
"""Seconds that each may take to answer."""


def with_services_elsewhere(
    own: Sequence[ServiceStatus], settings: Settings, deployer: Mapping[str, Any] | None
) -> list[ServiceStatus]:
    """Return the services of this home, and those that others run in the place of its own.

    Args:
        own: as this home's supervisord knows them.
        settings: of this home.
        deployer: what the deployer says of itself; None where it does not answer.
    """
    elsewhere = {service.name: service for service in _services_elsewhere(settings, deployer)}
    # Whoever runs the deployer runs the others or not: none of them is this home's to start.
    ours = ["gateway"] if "deployer" in elsewhere else [service.name for service in own]
    services = {service.name: service for service in own if service.name in ours}
    order = ["gateway", *SERVICES]
    return sorted((services | elsewhere).values(), key=lambda service: order.index(service.name))


def _services_elsewhere(
    settings: Settings, deployer: Mapping[str, Any] | None
) -> list[ServiceStatus]:
    logs = Supervisor(settings.home).logs

    def service(name: str, address: str, answers: bool, since: float = 0.0) -> ServiceStatus:
        return ServiceStatus(
            name=name,
            state=ELSEWHERE,
            since=since,
            address=address,
            answers=answers,
            log=log_of(name, logs),
        )

    found = []
    if (mlflow := _bare(settings.tracking_uri)).startswith(("http://", "https://")):
        found.append(service("mlflow", mlflow, _answers(f"{mlflow}/health")))
    if service_addresses.read(settings.home) is not None:
        return found
    if api := _bare(users_api() or ""):
        found.append(service("prefect", api, _answers(f"{api}/health")))
    if deployer is not None:
        address = service_addresses.deployer_url(settings)
        found.append(service("deployer", address, answers=True, since=deployer["since"]))
        # Only Prefect knows how the worker is.
        if api and (polls := _polls(api)) is not None:
            found.append(service("worker", "", polls))
    return found


def _bare(url: str) -> str:
    return without_login(url).rstrip("/")


def _answers(url: str) -> bool:
    """Whether a server of somebody's answers, if only by refusing whoever is not logged in."""
    try:
        # verify: which certificates a client of it takes is that client's to know, and nothing
        # that is a secret is sent.
        return not httpx.get(url, timeout=TIMEOUT, verify=False).is_server_error
    # An address may be none.
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def _polls(api: str) -> bool | None:
    """Whether Prefect hears from a worker of our pool; None where Prefect does not say."""
    user, separator, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    key = os.environ.get("PREFECT_API_KEY", "")
    try:
        response = httpx.post(
            f"{api}/{WORKERS}",
            json={},
            timeout=TIMEOUT,
            auth=(user, password) if separator else None,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        return is_polled(response, since=0.0) if response.is_success else None
    # ValueError: a page to log in at, say, in place of JSON.
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None
