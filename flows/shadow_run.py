"""A shadow run: a flow run that shows work which goes on elsewhere, whatever becomes of Prefect.

A rollout must neither wait for Prefect nor end with it. So the work stays in the caller's thread,
and the flow run is made on a thread of its own: it repeats the work's log lines, waits for its end,
and ends as the work did.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from weighbridge.core import service_addresses
from weighbridge.flows.prefect_settings import users_api

R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass
class ShadowedJob(Generic[R]):
    """A redeployment under way, and what its shadow run is told of it."""

    target: str
    trigger: str
    records: "queue.SimpleQueue[logging.LogRecord | None]" = field(
        default_factory=queue.SimpleQueue
    )
    """What it logged; None at its end."""
    outcome: "Future[R]" = field(default_factory=Future)

    @property
    def title(self) -> str:
        return f"redeploy {self.target}"


class _ThreadLogHandler(logging.Handler):
    """Puts what one thread logs into a queue."""

    def __init__(self, records: "queue.SimpleQueue[logging.LogRecord | None]") -> None:
        super().__init__(logging.INFO)
        self._records = records
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        # Several targets may be redeployed at once, each by a thread of its own.
        if record.thread == self._thread:
            self._records.put(record)


def with_shadow_run(
    job: ShadowedJob[R],
    work: Callable[[], R],
    state: Callable[[R], Any],
    tags: frozenset[str] = frozenset(),
) -> R:
    """Do the work here and now, and show it as a flow run where Prefect answers.

    Args:
        job: What the work is about.
        work: The work; whatever it raises is raised here.
        state: Returns the state in which the flow run ends, of what the work returned.
        tags: Of the flow run.

    Returns:
        What the work returned.
    """
    # Without an address Prefect would start a server for the flow run.
    if users_api():
        shadow = threading.Thread(
            target=_run_flow, args=(job, state, tags), name=f"shadow {job.title}", daemon=True
        )
        shadow.start()
    with _logged_to(job):
        try:
            result = work()
        except BaseException as exc:
            job.outcome.set_exception(exc)
            raise
        job.outcome.set_result(result)
        return result


@contextlib.contextmanager
def _logged_to(job: ShadowedJob[Any]) -> Iterator[None]:
    """Give the job what this thread logs within the block."""
    handler = _ThreadLogHandler(job.records)
    logging.getLogger("weighbridge").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("weighbridge").removeHandler(handler)
        # Also after an error: the shadow run waits for it.
        job.records.put(None)


def _run_flow(job: ShadowedJob[R], state: Callable[[R], Any], labels: frozenset[str]) -> None:
    """Run the flow to its end, or log that Prefect is away."""
    from prefect import flow, tags
    from prefect.exceptions import PrefectException

    if not service_addresses.answers(f"{str(users_api()).rstrip('/')}/health", timeout=2.0):
        logger.info("Prefect does not answer: %s goes on without a flow run", job.title)
        return
    shadow = flow(name="redeploy", flow_run_name="redeploy {target}", persist_result=False)(
        _flow_function(job, state)
    )
    try:
        with tags(*labels):
            shadow(target=job.target, trigger=job.trigger, return_state=True)
    except (httpx.HTTPError, PrefectException, OSError) as exc:
        logger.warning("Prefect lost sight of %s: %s", job.title, exc)


def _flow_function(job: ShadowedJob[R], state: Callable[[R], Any]) -> Callable[..., Any]:
    """Return the flow's function: it waits, repeats what is logged, and ends as the work ends."""

    # Its parameters are those of the flow `redeploy`, so that Prefect shows both alike.
    def shadow(target: str, trigger: str) -> Any:
        from prefect import get_run_logger
        from prefect.states import Failed

        page = get_run_logger()
        while (record := job.records.get()) is not None:
            page.log(record.levelno, record.getMessage())
        error = job.outcome.exception()
        if error is None:
            return state(job.outcome.result())
        return Failed(message=str(error) or type(error).__name__)

    return shadow
