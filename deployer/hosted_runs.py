"""Flow runs that the deployer carries out itself: short ones that come often.

A process of its own would take 7 s of a processor, nearly all of it to import what the deployer has
imported. The worker is given such runs as any others, and asks the deployer (`run_request`).
"""

import importlib
import logging
import threading
from concurrent.futures import Future
from typing import Any, Literal
from uuid import UUID

from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.flows import prefect_internals
from weighbridge.flows.deployments import HOSTED

logger = logging.getLogger(__name__)

Outcome = Literal["over", "refused", "broken"]
"""Over: Prefect knows how it ended. Refused: nothing was begun. Broken: nobody knows."""
_IMPORTING = threading.Lock()


class HostedRuns:
    """Carries out flow runs, each on a thread of its own, and of one flow one at a time."""

    def __init__(self) -> None:
        self._under_way = {flow: threading.Lock() for flow in HOSTED}

    def begin(self, flow: str, flow_run: UUID) -> "Future[Outcome]":
        """Begin a flow run; return at once what will say how it ended.

        It is refused while an earlier one of the same flow goes on, which may hang.
        """
        outcome: Future[Outcome] = Future()
        lock = self._under_way.get(flow)
        if lock is None or not lock.acquire(blocking=False):
            outcome.set_result("refused")
            return outcome
        # From here on nobody who has lost interest can cancel it.
        outcome.set_running_or_notify_cancel()
        threading.Thread(
            target=self._run, args=(flow, flow_run, lock, outcome), name=flow, daemon=True
        ).start()
        return outcome

    def _run(
        self, flow: str, flow_run: UUID, lock: threading.Lock, outcome: "Future[Outcome]"
    ) -> None:
        try:
            result = _carry_out(flow, flow_run)
        # Whatever it is: the worker waits for an answer, and reports the run as crashed.
        except Exception:
            logger.exception("the flow run %s of %s broke off", flow_run, flow)
            result = "broken"
        lock.release()
        outcome.set_result(result)


def _carry_out(flow: str, flow_run: UUID) -> Outcome:
    function = _function_of(flow)
    try:
        prefect_internals.carry_out(function, flow_run)
    except NAME_IS_GONE as exc:
        warn_name_is_gone("prefect", exc)
        return "refused"
    logger.info("carried out a run of %s", flow)
    return "over"


def _function_of(flow: str) -> Any:
    # Two threads that import modules which import each other get one of them half.
    with _IMPORTING:
        return getattr(importlib.import_module(f"weighbridge.flows.{flow}"), flow)
