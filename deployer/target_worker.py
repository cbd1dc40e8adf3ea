"""One target and the thread that reconciles it, one request after the other."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.formatting import one_line
from weighbridge.registry import Binding
from weighbridge.rollout.reconcile import ReconcileResult

ROUTINE = "reconcile"
"""The trigger of a look that nobody asked for."""
_BY_PEOPLE = frozenset({"webhook", "promote", "rollback"})
"""Triggers behind which somebody moved, or confirmed, the alias."""

OnResult = Callable[[Binding, ReconcileResult], None]
"""Takes what a look came to, where that is news."""
ReconcileTarget = Callable[[Binding, str, float], ReconcileResult]
"""Takes the binding, the trigger, and when somebody last asked (Unix time, 0: nobody did)."""

logger = logging.getLogger(__name__)


class TargetWorker:
    """Reconciles one target on a thread of its own, whenever that is requested."""

    def __init__(self, binding: Binding, reconcile: ReconcileTarget, on_result: OnResult) -> None:
        self.binding = binding
        self._reconcile = reconcile
        self._on_result = on_result
        self._requested = threading.Event()
        self._stopped = False
        self._trigger = ""
        self._asked_at = 0.0
        self._busy_since = 0.0
        self._last: dict[str, Any] = {}
        self._thread = threading.Thread(
            target=self._run, name=f"target {binding.target}", daemon=True
        )
        self._thread.start()

    def request(self, trigger: str) -> None:
        """Have the target reconciled soon; several requests before that are one.

        Args:
            trigger: What asked for it. The routine look does not replace any other.
        """
        if trigger != ROUTINE or not self._trigger:
            self._trigger = trigger
        if trigger in _BY_PEOPLE:
            self._asked_at = time.time()
        self._requested.set()

    def stop(self) -> None:
        """Reconcile no more, once what is under way is over."""
        self._stopped = True
        self._requested.set()

    @property
    def busy(self) -> bool:
        return bool(self._busy_since)

    def status(self) -> dict[str, Any]:
        """Return what it does now, and what came of the last look, as JSON."""
        return {"model": self.binding.model, "busy_since": self._busy_since or None, **self._last}

    def _run(self) -> None:
        while True:
            self._requested.wait()
            # Before the look: what is requested while it goes on is one more look afterwards.
            self._requested.clear()
            if self._stopped:
                return
            trigger, self._trigger = self._trigger or ROUTINE, ""
            self._busy_since = time.time()
            try:
                self._look(trigger)
            finally:
                self._busy_since = 0.0

    def _look(self, trigger: str) -> None:
        result: ReconcileResult | None = None
        try:
            result = self._reconcile(self.binding, trigger, self._asked_at)
            outcome = {"action": result.action, "detail": result.detail, "version": result.version}
        # Whatever it is: this thread is the target's only one.
        except Exception as exc:
            if not isinstance(exc, WeighbridgeError):
                logger.exception("%s: this look broke off", self.binding.target)
            version = self._last.get("version", "")
            outcome = {"action": "error", "detail": one_line(exc), "version": version}
        before = (self._last.get("action"), self._last.get("detail"))
        # A look every few seconds would fill the log with the same line.
        is_news = outcome["action"] != "nothing" and before != (
            outcome["action"],
            outcome["detail"],
        )
        if is_news:
            logger.info("%s: %s: %s", self.binding.target, outcome["action"], outcome["detail"])
        if result is not None and (is_news or result.action in ("deployed", "failed")):
            self._on_result(self.binding, result)
        self._last = {**outcome, "trigger": trigger, "at": time.time()}
