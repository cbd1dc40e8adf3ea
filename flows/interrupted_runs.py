"""Flow runs whose process was killed: marked as Crashed, so that nobody waits for their end."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import psutil

from weighbridge.core import loopback
from weighbridge.core.process_identity import has_ended, machine
from weighbridge.core.service_addresses import HOST
from weighbridge.flows.prefect_settings import users_api

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

CREATOR = "WEIGHBRIDGE"
_UNFINISHED: Mapping[str, Any] = {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}}
_PATIENCE = 60.0
"""Seconds that a Prefect which starts may take until it answers."""
_PROCESS = re.compile(r"weighbridge process (\d+) on (.+) since (.+)")

logger = logging.getLogger(__name__)


def identity() -> str:
    """Return what tells this process apart from all others that ever used this home.

    It stands in every flow run of this process: as its creator, or as one of its tags.
    """
    # A process number alone is used again by the system; with the time of its start it is unique.
    started = datetime.fromtimestamp(psutil.Process().create_time()).isoformat(" ", "seconds")
    return f"weighbridge process {os.getpid()} on {machine()} since {started}"


def mark_interrupted() -> list[str]:
    """Mark the flow runs of our processes that no longer live as Crashed; return their ids."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        dead = [
            run["id"]
            for run in _filter(client, "flow_runs", _UNFINISHED)
            if any(_is_dead(process) for process in _processes_of(run))
        ]
        _mark(
            client,
            dead,
            "The process was killed. Run the recipe again: finished stages are reused.",
        )
    return dead


def mark_crashed(tag: str, before: float) -> list[str]:
    """Mark the flow runs with this tag that began before this time as Crashed; return their ids.

    Where Prefect does not answer, that is logged and nothing is marked.
    """
    began = {"before_": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before))}
    criteria = {**_UNFINISHED, "tags": {"all_": [tag]}, "start_time": began}
    if _surely_none(criteria):
        return []
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException

    message = (
        "The deployer ended. What was under way is settled at its next start; "
        "see: weighbridge history"
    )
    try:
        with get_client(sync_client=True) as client:
            runs = [run["id"] for run in _filter(client, "flow_runs", criteria)]
            _mark(client, runs, message)
    except (httpx.HTTPError, PrefectException, OSError) as exc:
        logger.warning("Prefect was not told which flow runs were killed: %s", exc)
        return []
    return runs


def _surely_none(criteria: Mapping[str, Any]) -> bool:
    """Whether a Prefect of this machine says, once it is up, that it has no such flow run.

    Asked without Prefect's client, which takes two seconds and 70 MB to import.
    """
    url = users_api() or ""
    if not url.startswith(f"http://{HOST}:"):
        return False
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    path, body = f"{url.rstrip('/')}/flow_runs/filter", {"flow_runs": criteria}
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        # It may be starting, as this process is.
        with contextlib.suppress(httpx.TransportError):
            answer = loopback.post(path, body, 30, auth=(user, password))
            return answer.is_success and answer.json() == []
        time.sleep(1)
    return False


def unfinished_task_runs(tag: str) -> int:
    """Return how many task runs with this tag Prefect has not seen the end of."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return len(_filter(client, "task_runs", {**_UNFINISHED, "tags": {"all_": [tag]}}))


def _mark(client: "SyncPrefectClient", flow_runs: Iterable[str], message: str) -> None:
    """Mark flow runs and their unfinished task runs as Crashed."""
    from prefect.client.schemas.objects import State
    from prefect.states import Crashed

    state: State[Any] = Crashed(message=message)
    for flow_run in flow_runs:
        unfinished = {**_UNFINISHED, "flow_run_id": {"any_": [flow_run]}}
        # The flow run last: were we killed in between, the next look would find it unfinished.
        for task_run in _filter(client, "task_runs", unfinished):
            client.set_task_run_state(UUID(task_run["id"]), state, force=True)
        # Forced, past Prefect's orchestration rules: the process that they would steer is gone.
        client.set_flow_run_state(UUID(flow_run), state, force=True)


def _filter(
    client: "SyncPrefectClient", kind: str, criteria: Mapping[str, Any]
) -> list[dict[str, Any]]:
    path: Any = f"/{kind}/filter"  # the client's own type knows no path of which a part is a value
    entries: list[dict[str, Any]] = client.request("POST", path, json={kind: criteria}).json()
    return entries


def _processes_of(run: Mapping[str, Any]) -> list[str]:
    """Return what may be an `identity`: a server inside our process notes it as the creator."""
    creator = run.get("created_by") or {}
    names = [creator["display_value"]] if creator.get("type") == CREATOR else []
    return [*names, *run["tags"]]


def _is_dead(process: str) -> bool:
    """Whether the process of this `identity` has ended.

    One of another machine counts as alive, since nobody can tell here; so does what is no identity.
    """
    match = _PROCESS.fullmatch(process)
    if match is None:
        return False
    started = datetime.fromisoformat(match[3]).timestamp()
    # The identity is exact to a second.
    return bool(has_ended(match[2], int(match[1]), started, within=2.0))
