"""Stages handed over to Prefect's work pools: begun as flow runs there, waited for, begun again.

Each stage is a flow run of the deployment `stage/<pool>`, a child of the release's. What is handed
over and what comes back lies in the shared store (`remote_stages`).
"""

import contextlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import httpx
from pydantic import TypeAdapter

from weighbridge.configs.recipe import Recipe
from weighbridge.configs.run_args import PoolArgs
from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.formatting import one_line
from weighbridge.core.versions import own_version
from weighbridge.core.workspace import Workspace
from weighbridge.flows.cached_stages import CachedStage
from weighbridge.flows.pool_checks import living_workers
from weighbridge.flows.remote_stages import StageInputs, read_document, share_document, store_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

SILENCE: Final = 60.0
"""Seconds without a sign of life after which a process is taken for dead: several renewals."""
PATIENCE: Final = 600.0
"""Seconds for which Prefect may not answer while stages run."""
WORKERS_EVERY: Final = 20.0
"""Seconds between two looks for workers, where a run waits for one."""
PAGE: Final = 200
"""Runs that Prefect tells of in one answer."""
FIRST_POLL, LONGEST_POLL = 0.5, 5.0
LATER_POLL: Final = 1.02
"""Times as long as the one before: a result is seen late by a fiftieth of what it took, at most."""

_KILLED: Final = re.compile(r"status code:? (137|-9)\b")
"""What Prefect says of a process that got SIGKILL: by hand, or for its memory."""
_REFUSED: Final = "Failed to submit flow run to infrastructure"
"""What Prefect says where Docker, say, started nothing: it had no image, or no such device."""
REFUSED_PAUSE: Final = 30.0
"""Seconds until one that was refused is begun again, of which a registry or a daemon that is being
restarted needs some; no more than a tenth of the time in which it is to begin.
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """One stage to be run on a pool."""

    step: CachedStage[Any]
    inputs: StageInputs
    place: PoolArgs
    title: str
    """Of its page."""


@dataclass
class _Child:
    """One order under way: its flow run of this attempt."""

    order: Order
    run: UUID
    began: float
    retries: int
    due: float | None = None
    """When it is begun again; None: its run is under way."""
    outcome: Any = None
    """Its result, or the error that it ended with."""
    lease: Any = None
    seen: float = 0.0
    """When its lease was seen to change."""
    state: str = ""
    told: str = ""
    """State and host, as they were logged last."""
    looked: float = field(default_factory=time.monotonic)
    """When the pool was looked at for workers."""
    without_worker: float | None = None

    @property
    def doing(self) -> str:
        return f"running {self.order.title} on work pool {self.order.place.pool}"


class StagePools:
    """Hands stages of one recipe over, and waits for them. Within a flow run."""

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        self._recipe = recipe.model_dump(mode="json")
        self._workspace = workspace

    def run(self, order: Order) -> Any:
        """Return the result of a stage that a pool has run.

        Raises:
            WeighbridgeError: what it ended with there; or why it did not begin, or broke off.
        """
        (outcome,) = self.run_all([order])
        if isinstance(outcome, WeighbridgeError):
            raise outcome
        return outcome

    def run_all(self, orders: Sequence[Order]) -> list[Any]:
        """Return the result of each, or the error that it ended with; all go side by side.

        Whatever interrupts the wait cancels them, as does one that cannot be begun.
        """
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            children: list[_Child] = []
            try:
                for order in orders:
                    children.append(self._begin(order, order.place.retries, client))
                self._wait(children, client)
            except BaseException:
                under_way = (child for child in children if child.outcome is None)
                _cancel([child for child in under_way if child.due is None], client)
                raise
        return [child.outcome for child in children]

    def _begin(self, order: Order, retries: int, client: "SyncPrefectClient") -> _Child:
        from prefect.deployments import run_deployment

        parameters = {
            "name": order.step.name,
            "title": order.title,
            "recipe": self._recipe,
            "inputs": share_document(order.inputs, self._workspace),
            "store": store_of(self._workspace).location.uri,
            "release": own_version(),
            "version": order.step.version,
        }
        # A container that has ended keeps its name: by the title alone podman refuses the next.
        own = {"name": f"{order.title}-{uuid4().hex[:8]}"}
        run: Any = run_deployment(
            deployment_of(order.place.pool, client),
            parameters=parameters,
            job_variables={**own, **order.place.job_variables},
            flow_run_name=order.title,
            timeout=0,
        )
        logger.info("%s is handed over to work pool %s (%s)", order.title, order.place.pool, run.id)
        now = time.monotonic()
        return _Child(order, run.id, now, retries, seen=now)

    def _wait(self, children: Sequence[_Child], client: "SyncPrefectClient") -> None:
        poll, answered = FIRST_POLL, time.monotonic()
        while waiting := [child for child in children if child.outcome is None]:
            time.sleep(poll)
            poll = min(LONGEST_POLL, poll * LATER_POLL)
            try:
                runs = _read([child.run for child in waiting], client)
                for child in waiting:
                    self._look(child, runs.get(child.run), client)
                answered = time.monotonic()
            except httpx.HTTPError as exc:
                if time.monotonic() - answered > PATIENCE:
                    raise Unavailable("waiting for stages on work pools", str(exc)) from exc

    def _look(self, child: _Child, run: "FlowRun | None", client: "SyncPrefectClient") -> None:
        """Take note of what has become of a run."""
        from weighbridge.flows import stage

        if child.due is not None:
            if time.monotonic() >= child.due:
                self._begin_again(child, client)
            return
        if run is None or run.state is None:
            self._lost(child, "Prefect has no such run any more", client)
        elif run.state.is_completed():
            child.outcome = self._result(child.order, run.labels.get(stage.RESULT))
        elif run.state.is_crashed():
            self._lost(child, run.state.message or "its process was lost", client)
        elif run.state.is_final():
            why = run.state.message or f"it is {run.state.name}"
            child.outcome = stage.error_of(run.labels) or Unavailable(child.doing, why)
        elif run.state.is_running():
            self._look_at_lease(child, run, client)
        else:
            _look_at_start(child, run, client)
        # Else it has been begun again, as another run.
        if run is not None and run.state and run.id == child.run:
            child.state = run.state.name or ""
            where = run.labels.get(stage.HOST)
            told = f"{child.state} on {where}" if where else child.state
            if told != child.told:
                child.told = told
                logger.info("%s: %s", child.order.title, told)

    def _look_at_lease(self, child: _Child, run: "FlowRun", client: "SyncPrefectClient") -> None:
        from weighbridge.flows import stage

        # By changes, not by its time: two clocks may differ.
        if (lease := run.labels.get(stage.LEASE)) != child.lease or child.state != (
            run.state and run.state.name
        ):
            child.lease, child.seen = lease, time.monotonic()
        elif time.monotonic() - child.seen > SILENCE:
            why = f"there was no sign of its process for {SILENCE:.0f} s"
            _end(child.run, "Crashed", why, client)
            self._lost(child, why, client)

    def _lost(self, child: _Child, why: str, client: "SyncPrefectClient") -> None:
        """Begin a run again whose process or machine was lost, as often as the recipe allows."""
        if child.retries == 0:
            tried = child.order.place.retries
            again = f"; it was begun again {tried} times" if tried else ""
            # None: it never said that it lives.
            remedy = _remedy(why, begun=child.lease is not None)
            child.outcome = Unavailable(child.doing, f"{why}{again}", remedy)
            return
        if not why.startswith(_REFUSED):
            logger.warning("%s: %s; it is begun again", child.order.title, why)
            self._begin_again(child, client)
            return
        # At once, it would be refused again.
        pause = min(REFUSED_PAUSE, child.order.place.start_deadline / 10)
        logger.warning("%s: %s; it is begun again in %.0f s", child.order.title, why, pause)
        child.due = time.monotonic() + pause

    def _begin_again(self, child: _Child, client: "SyncPrefectClient") -> None:
        fresh = self._begin(child.order, child.retries - 1, client)
        child.due = None
        child.run, child.began, child.retries = fresh.run, fresh.began, fresh.retries
        child.lease, child.seen, child.state, child.without_worker = None, fresh.seen, "", None

    def _result(self, order: Order, digest: Any) -> Any:
        from weighbridge.flows import stage

        if not isinstance(digest, str):
            return Unavailable(f"running {order.title}", "it ended without saying what came of it")
        try:
            document = stage.StageResult.model_validate_json(read_document(digest, self._workspace))
            value = TypeAdapter(order.step.result).validate_python(document.value)
        except WeighbridgeError as exc:
            return exc
        return self._workspace.store.bind(value)


def deployment_of(pool: str, client: "SyncPrefectClient") -> UUID:
    """Return the deployment by which stages run on a pool, made where there is none of this
    release.
    """
    from prefect.exceptions import ObjectNotFound

    from weighbridge.flows import stage

    with contextlib.suppress(ObjectNotFound):
        known = client.read_deployment_by_name(f"{stage.FLOW}/{pool}")
        if (known.version, known.work_pool_name) == (own_version(), pool):
            return known.id
    return client.create_deployment(
        client.create_flow_from_name(stage.FLOW),
        pool,
        version=own_version(),
        work_pool_name=pool,
        entrypoint=stage.ENTRYPOINT,
        tags=["weighbridge"],
        description="One stage of a release, on this work pool. Releases begin it themselves.",
        enforce_parameter_schema=False,
    )


def _look_at_start(child: _Child, run: "FlowRun", client: "SyncPrefectClient") -> None:
    """End a run that was taken and does not begin, or that nobody is there to take.

    One that waits for its turn on a busy pool may wait.
    """
    now, place = time.monotonic(), child.order.place
    assert run.state is not None
    if run.state.is_pending():
        # Since then a worker has it, and asks for a process, a container or a pod.
        child.without_worker = None
        if child.state != run.state.name:
            child.began = now
        elif now - child.began > place.start_deadline:
            last = _last_warning(child.run, client) or run.state.message or "nobody says why"
            _give_up(
                child,
                f"it had not begun {place.start_deadline:.0f} s after a worker took it",
                last,
                "Cancelling",
                client,
            )
        return
    if now - child.looked < min(WORKERS_EVERY, place.start_deadline / 2):
        return
    child.looked = now
    if living_workers(place.pool, client):
        child.without_worker = None
    elif child.without_worker is None:
        child.without_worker = now
        logger.warning("%s waits: no worker of %s is alive", child.order.title, place.pool)
    elif now - child.without_worker > place.start_deadline:
        _give_up(
            child,
            f"no worker of the pool was alive for {place.start_deadline:.0f} s",
            "",
            "Cancelled",
            client,
        )


def _remedy(why: str, *, begun: bool) -> str:
    """Return what to do about a process that was lost as often as it was begun."""
    if _KILLED.search(why):
        return "give it more memory: weighbridge pools apply --memory, or run.STAGE.job_variables"
    if why.startswith(_REFUSED):
        return "see the log of its worker"
    if not begun:
        # Its command may have found another Python.
        return "see the log of its worker: does its command find Weighbridge there?"
    return "run again: it goes on where it was"


def _give_up(child: _Child, why: str, last: str, state: str, client: "SyncPrefectClient") -> None:
    _end(child.run, state, why, client)
    wrong = f"{why}: {last}" if last else why
    start = f"start one: prefect worker start --pool {child.order.place.pool}"
    remedy = "see the pool's page" if last else start
    if left := _left_behind(child, client):
        remedy += f"; {left}"
    child.outcome = Unavailable(child.doing, wrong, remedy)


def _left_behind(child: _Child, client: "SyncPrefectClient") -> str:
    """Return what a run that has not begun leaves in a cluster, and how to remove it; else "".

    Prefect's worker makes a Job and looks after it no more, cancelled or not: its pod would be
    waited for until the deadline of the Job.
    """
    from prefect.exceptions import PrefectException

    with contextlib.suppress(httpx.HTTPError, PrefectException):
        run = client.read_flow_run(child.run)
        namespace, _, job = (run.infrastructure_pid or "").partition(":")
        pool = client.read_work_pool(child.order.place.pool)
        if job and run.start_time is None and pool.type == "kubernetes":
            return f"its Job waits in the cluster still: kubectl -n {namespace} delete job {job}"
    return ""


def _read(runs: Sequence[UUID], client: "SyncPrefectClient") -> Mapping[UUID, "FlowRun"]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    found: dict[UUID, FlowRun] = {}
    for first in range(0, len(runs), PAGE):
        asked = FlowRunFilter(id=FlowRunFilterId(any_=list(runs[first : first + PAGE])))
        found |= {run.id: run for run in client.read_flow_runs(flow_run_filter=asked)}
    return found


def _last_warning(run: UUID, client: "SyncPrefectClient") -> str:
    """Return the newest warning on a run's page: there workers tell of images and pods."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel
    from prefect.client.schemas.sorting import LogSort

    of_run = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[run]), level=LogFilterLevel(ge_=logging.WARNING)
    )
    logs = client.read_logs(of_run, limit=1, sort=LogSort.TIMESTAMP_DESC)
    return one_line(logs[0].message, 300) if logs else ""


def _cancel(children: Sequence[_Child], client: "SyncPrefectClient") -> None:
    for child in children:
        _end(child.run, "Cancelling", "The release was interrupted.", client)
        if left := _left_behind(child, client):
            logger.warning("%s: %s", child.order.title, left)


def _end(run: UUID, state: str, why: str, client: "SyncPrefectClient") -> None:
    from prefect import states
    from prefect.exceptions import PrefectException

    make: Any = {
        "Cancelling": states.Cancelling,
        "Cancelled": states.Cancelled,
        "Crashed": states.Crashed,
    }[state]
    # Nobody waits for it any more, whatever Prefect says to that.
    with contextlib.suppress(httpx.HTTPError, PrefectException):
        client.set_flow_run_state(run, make(message=why), force=state != "Cancelling")
