"""Whether the work pools that a recipe names can run its stages: told at once, not after hours."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from weighbridge.configs.run_args import PoolArgs, RunArgs
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.flows.remote_stages import store_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import WorkPool


def check(run: RunArgs, workspace: Workspace) -> None:
    """Check the shared store's setting, and every pool.

    Raises:
        BadInput: there is no shared store, no such pool, or its template knows no such variable.
        Unavailable: a pool is paused, or has no worker that is alive; or Prefect does not answer.
    """
    places = run.pools()
    if not places:
        return
    store_of(workspace)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        try:
            for place in places:
                _check_pool(place, client)
        except httpx.HTTPError as exc:
            raise Unavailable("looking at work pools", f"Prefect does not answer: {exc}") from exc


def living_workers(pool: str, client: "SyncPrefectClient") -> list[str]:
    """Return the names of a pool's workers that are alive, as far as Prefect knows."""
    from prefect.client.schemas.objects import WorkerStatus

    workers = client.read_workers_for_work_pool(pool)
    return [worker.name for worker in workers if worker.status == WorkerStatus.ONLINE]


def _check_pool(place: PoolArgs, client: "SyncPrefectClient") -> None:
    from prefect.exceptions import ObjectNotFound

    doing = f"looking at work pool {place.pool}"
    try:
        pool = client.read_work_pool(place.pool)
    except ObjectNotFound as exc:
        raise BadInput(
            doing,
            f"Prefect at {client.api_url} has no such pool",
            f"make it: weighbridge pools apply --type process --pool {place.pool}; a run that "
            "finds neither PREFECT_API_URL nor `weighbridge up` has a Prefect of its own, "
            "without pools",
        ) from exc
    if pool.is_paused:
        raise Unavailable(doing, "it is paused", f"prefect work-pool resume {place.pool}")
    # Pools that push, or that Prefect manages, have no workers.
    if ":" not in pool.type and not living_workers(place.pool, client):
        start = f"start one: prefect worker start --pool {place.pool}"
        raise Unavailable(doing, "no worker of it is alive", start)
    _check_variables(place.job_variables, pool)


def _check_variables(given: Mapping[str, Any], pool: "WorkPool") -> None:
    """Refuse variables that the pool's template does not know, or of another type."""
    from jsonschema import Draft202012Validator

    doing = f"reading run.job_variables for work pool {pool.name}"
    schema = pool.base_job_template.get("variables", {})
    known = schema.get("properties", {})
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it knows: {', '.join(sorted(known))}"
            raise BadInput(doing, f"its template has no variable {name}", hint)
        # What it refers to is beside it, under either name.
        shared = {part: schema[part] for part in ("definitions", "$defs") if part in schema}
        whole = {**known[name], **shared}
        for error in Draft202012Validator(whole).iter_errors(value):
            raise BadInput(doing, f"{name}: {error.message}")
