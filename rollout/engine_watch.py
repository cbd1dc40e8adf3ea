"""Start an engine again that hangs: its process runs, and nobody gets an answer.

A process that ends is started again by whoever supervises it. One that stands still is seen here:
by looks at the revision that serves, each bounded in time. A look asks the engine itself; where
that says nothing, requests that clients got answered since the look before count as well, so that
an engine is not ended for being busy.

Works while a rollout goes on, and without a disk: only what is written down waits then.
"""

import contextlib
import logging
import time
import uuid

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.hang_watch import HangWatch
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.outbox import Outbox
from weighbridge.serving.targets.base import Revision
from weighbridge.serving.targets.records import RESTART, TargetRecords
from weighbridge.serving.traffic_figures import total

logger = logging.getLogger(__name__)

_ANSWERED = "responses_2xx"


class EngineRestart(BaseModel):
    """The last time that an engine was started again because it hung."""

    model_config = ConfigDict(frozen=True)

    revision: str
    at: float = Field(description="Unix time.")
    why: str
    count: int = Field(description="Restarts in a row, each soon after the one before.")


def last_restart(records: TargetRecords) -> EngineRestart | None:
    """Return the last restart of an engine at a target, whose records these are; None of none."""
    with contextlib.suppress(ValidationError):
        return EngineRestart.model_validate_json(records.read(RESTART).content)
    return None


class EngineWatch:
    """Watches what serves at one target; it is one for as long as the deployer runs."""

    def __init__(self) -> None:
        self._watched: Revision | None = None
        self._watch = HangWatch(0.0)
        self._answered = 0.0
        self._unrecorded: EngineRestart | None = None

    def look(self, managed: ManagedTarget) -> None:
        """Look once at what serves, and start it again where it has hung for long.

        Raises:
            WeighbridgeError: the target's state cannot be read, or the restart not written down.
        """
        state = managed.load_state()
        revision = state.current
        stopped_for_swap = state.rollout is not None and state.rollout.swap
        if revision is None or stopped_for_swap:
            self._watch.forget()
            return
        if self._watched is None or self._watched.name != revision.name:
            self._watched, self._watch = revision, HangWatch(managed.args.rollout.start_deadline)
        target, now = managed.target, time.time()
        answers = target.is_healthy(revision) or self._answered_somebody(managed, revision)
        since = 0.0 if answers else target.running_since(revision)
        if self._watch.look(answers, since, now) and target.restart(revision):
            self._note(managed, revision, now)
        self._record(managed, revision)

    def _answered_somebody(self, managed: ManagedTarget, revision: Revision) -> bool:
        """Whether clients got answers since the last look that asked this."""
        before, self._answered = (
            self._answered,
            total(managed.target.traffic_figures(revision), _ANSWERED),
        )
        # The first of several looks in a row has nothing to compare with.
        return self._watch.unanswered > 0 and self._answered > before

    def _note(self, managed: ManagedTarget, revision: Revision, now: float) -> None:
        why = "its process ran and did not answer: it was stopped and started again"
        logger.warning("%s: %s: %s", managed.name, revision.release.bento, why)
        self._unrecorded = restart = EngineRestart(
            revision=revision.name, at=now, why=why, count=self._watch.restarts
        )
        try:
            managed.records.change(RESTART, lambda _: restart.model_dump_json().encode())
        except WeighbridgeError as exc:
            logger.warning("%s: its restart is not written down: %s", managed.name, exc)

    def _record(self, managed: ManagedTarget, revision: Revision) -> None:
        """Write a restart into the ledger, now or at the end of the rollout that goes on.

        It is an entry of its own there, which begins and ends with the version that serves.
        """
        restart = self._unrecorded
        if restart is None:
            return
        with contextlib.suppress(WeighbridgeError), managed.records.lock(wait=False) as records:
            outbox, entry = Outbox(records), uuid.uuid4().hex
            outbox.write_begin(entry, managed.name, revision.release, revision, "watch")
            outbox.write(entry, "restart", revision=revision.name, at=restart.at)
            outbox.write(entry, "end", outcome="restarted", verdict="error", detail=restart.why)
            self._unrecorded = None
