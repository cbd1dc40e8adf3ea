"""A flow run that only watches: the work goes on in the caller's thread, whatever becomes of
Prefect.

A rollout must neither wait for Prefect nor end with it. So the flow run is a coat that stands
beside the work on a thread of its own, repeats its log lines, waits for its end, and takes on its
outcome.
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

logger = logging.getLogger("weighbridge.prefect")


@dataclass
class ShadowedJob(Generic[R]):
    """A redeployment under way, as seen from beside it."""

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


class _Forward(logging.Handler):
    """Takes what one thread logs."""

    def __init__(self, records: "queue.SimpleQueue[logging.LogRecord | None]") -> None:
        super().__init__(logging.INFO)
        self._records = records
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self._records.put(record)


def accompanied(
    job: ShadowedJob[R],
    work: Callable[[], R],
    state: Callable[[R], Any],
    tags: frozenset[str] = frozenset(),
) -> R:
    """Do `work` here and now, and have a flow run stand beside it where Prefect answers; gives what
    `work` gives.

    `state` says what the flow run ends as.
    """
    if users_api():
        coat = threading.Thread(
            target=_stand_beside, args=(job, state, tags), name=f"coat {job.title}", daemon=True
        )
        coat.start()
    with _heard(job):
        try:
            result = work()
        except BaseException as exc:
            job.outcome.set_exception(exc)
            raise
        job.outcome.set_result(result)
        return result


@contextlib.contextmanager
def _heard(job: ShadowedJob[Any]) -> Iterator[None]:
    handler = _Forward(job.records)
    logging.getLogger("weighbridge").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("weighbridge").removeHandler(handler)
        job.records.put(None)


def _stand_beside(job: ShadowedJob[R], state: Callable[[R], Any], labels: frozenset[str]) -> None:
    from prefect import flow, tags
    from prefect.exceptions import PrefectException

    if not service_addresses.answers(f"{str(users_api()).rstrip('/')}/health", timeout=2.0):
        logger.info("Prefect does not answer: %s goes on without a flow run", job.title)
        return
    coat = flow(name="redeploy", flow_run_name="redeploy {target}", persist_result=False)(
        _coat(job, state)
    )
    try:
        with tags(*labels):
            coat(target=job.target, trigger=job.trigger, return_state=True)
    except (httpx.HTTPError, PrefectException, OSError) as exc:
        logger.warning("Prefect lost sight of %s: %s", job.title, exc)


def _coat(job: ShadowedJob[R], state: Callable[[R], Any]) -> Callable[..., Any]:
    """The flow: waits, repeats what is logged, ends as the work ends."""

    def coat(target: str, trigger: str) -> Any:
        from prefect import get_run_logger
        from prefect.states import Failed

        page = get_run_logger()
        while (record := job.records.get()) is not None:
            page.log(record.levelno, record.getMessage())
        error = job.outcome.exception()
        if error is None:
            return state(job.outcome.result())
        return Failed(message=str(error) or type(error).__name__)

    return coat
