"""A rollout: a new version is started beside the old one, asked, and given traffic by steps.

::

    start ─ probe ─ shift 10 % … 100 % ─ commit ─ (the old one drains, and is stopped)
      └───────┴──────────┴── back: all traffic to the old one, the new one drains, and is stopped

Always in this order: the ledger says what is about to be done, the state says it,
the effect follows. So whoever opens the target after a crash knows what was going on: before
`commit` a rollout is rolled back, from there on it is finished (interrupted_rollouts.py).
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.formatting import human_size
from weighbridge.rollout import operator_commands, probe
from weighbridge.rollout.canary import Canary
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.rollout.state import FailedRollout, OngoingRollout
from weighbridge.serving.targets.base import Liveness, NeverRan, Release, Revision
from weighbridge.serving.targets.records import LockLost
from weighbridge.tasks.measurement import Measurement

logger = logging.getLogger(__name__)

POLL = 0.1
"""Seconds between two looks at a rollout."""
AT_ONCE = {"steps": (100,), "step_seconds": 0.0, "exclude_harm": "never"}
"""Going back must be quick, and goes to what has served already."""
MEMORY_EVERY = 1.0
"""Seconds between two looks at a version's memory: adding up its processes costs more than POLL."""
TELL_EVERY = 10.0
"""Seconds between two notes of what a step waits for: each is a write, in a cluster to its API."""
SWAP_RESERVE = 1.05
"""What a version needs beside the old one, over its measured peak."""
DEFAULT_MAX_TOKENS = 128
"""Longest answer to a question of ours, where the version was never weighed."""


class RolloutStopped(Exception):
    """The rollout goes no further: `outcome` is failed, aborted, superseded or interrupted."""

    def __init__(self, outcome: str, verdict: str, why: str) -> None:
        super().__init__(why)
        self.outcome, self.verdict, self.why = outcome, verdict, why


def never_superseded() -> None:
    """Return None: the version is desired for as long as the rollout goes on."""


class Rollout:
    """One attempt to have `release` serve at a target. Call `run` inside the target's lock."""

    def __init__(
        self,
        managed: ManagedTarget,
        release: Release,
        trigger: str,
        measurement: Measurement | None,
        superseded: Callable[[], str | None] = never_superseded,
    ) -> None:
        """Prepare a rollout; nothing is done yet.

        Args:
            managed: where.
            release: what shall serve.
            trigger: what the ledger says asked for it.
            measurement: how the release was weighed; None where it never was.
            superseded: returns why the release is not desired any more; None while it is.
        """
        self._managed = managed
        self._release = release
        self._trigger = trigger
        self._measurement = measurement
        self._superseded = superseded
        self._policy = managed.args.rollout
        if trigger == "rollback":
            self._policy = self._policy.model_copy(update=AT_ONCE)
        self._evidence: dict[str, float] = {}
        self._shown = self._waits_for = ""
        self._memory_due = 0.0
        self._questions = self._probe_questions()
        self._pool = ThreadPoolExecutor(1)

    def run(self) -> RolloutStopped | None:
        """Roll out, and return None when it serves, else why not. What served before serves then.

        Raises:
            BadInput: the address belongs to somebody else; nothing was touched.
            Unavailable: its Bento or environment can't be had; nothing was touched.
            LockLost: another deployer has the target by now; it settles this rollout.
        """
        managed, measurement = self._managed, self._measurement
        # First: an address that belongs to somebody else is told before anything is started.
        managed.route()
        self._ongoing = managed.begin_rollout(managed.prepare(self._release), self._trigger)
        previous = self._ongoing.previous
        self._canary = Canary(
            self._policy,
            self._as_reached(previous) if previous else None,
            self._as_reached(self._ongoing.next),
            managed.target.traffic(),
            self._questions,
            measurement.max_new_tokens if measurement else DEFAULT_MAX_TOKENS,
        )
        try:
            self._start()
            self._probe()
            self._shift()
        except RolloutStopped as stopped:
            return self._roll_back(stopped)
        except LockLost:
            raise  # another deployer has read what was going on, and goes on from there
        except WeighbridgeError as exc:
            return self._roll_back(RolloutStopped("failed", "error", str(exc)))
        # Ctrl-C leaves nothing half: what served before serves when the process ends.
        except KeyboardInterrupt:
            self._roll_back(RolloutStopped("interrupted", "error", "interrupted"))
            raise
        else:
            self._finish()
            return None
        finally:
            self._canary.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    # The steps

    def _start(self) -> None:
        managed, new = self._managed, self._ongoing.next
        self._make_room()
        self._enter("start", revision=new.name, bento=new.release.bento)
        began = time.monotonic()
        self._liveness: Liveness = managed.target.start(new)
        while not managed.target.answers(new):
            waits_for = self._tell_what_it_waits_for()
            waits = f" ({self._waits_for})" if self._waits_for else ""
            deadline = began + self._policy.start_deadline
            verdict = self._of_never_run() if waits_for else "fail"
            self._tick(deadline, f"it gave no completion{waits}", verdict)
        self._evidence["start_seconds"] = time.monotonic() - began
        self._enter("admit", admitted=True)

    def _tell_what_it_waits_for(self) -> str:
        """Write down at once what the new version waits for, as whoever runs it says, and return
        it; empty for nothing.
        """
        waits_for = self._managed.target.waits_for(self._ongoing.next)
        if waits_for in ("", self._waits_for):
            return waits_for
        # A line for each reason: how many nodes lack what changes all the time.
        if waits_for.partition(":")[0] != self._waits_for.partition(":")[0]:
            logger.warning("%s: %s: %s", self._managed.name, self._release.bento, waits_for)
            self._managed.outbox.write(self._ongoing.id, "waiting", why=waits_for)
        self._waits_for = waits_for
        self._tell(waits_for)
        return waits_for

    def _as_reached(self, revision: Revision) -> Revision:
        """Return a revision with the URL at which this process reaches it."""
        return revision.model_copy(update={"url": self._managed.target.url_of(revision)})

    def _make_room(self) -> None:
        """Stop the old version first where there is no room for both.

        Rolling back starts it again.
        """
        managed, old = self._managed, self._ongoing.previous
        lack = {} if old is None else self._lack_of_room()
        if old is None or not lack:
            return
        logger.warning("%s: %s: %s is stopped first", managed.name, lack["why"], old.release.bento)
        self._enter("swap", swap=True, **lack)
        deadline = time.monotonic() + self._policy.drain_seconds
        while managed.target.in_flight(old) and time.monotonic() < deadline:
            self._pause(POLL)
        managed.target.stop(old)

    def _lack_of_room(self) -> dict[str, Any]:
        """Return why both do not run beside each other, for the ledger; empty where they do."""
        target, needed = self._managed.target, self._release.peak_memory
        if why := target.lacks_room(self._ongoing.next):
            return {"why": why}
        free = target.free_memory()
        if not needed or free is None:
            return {}
        if needed * SWAP_RESERVE + self._policy.memory_reserve <= free:
            return {}
        why = f"{self._release.bento} needs {human_size(needed)} and {human_size(free)} are free"
        return {"why": why, "need": needed, "free": free}

    def _probe(self) -> None:
        if self._measurement is None:
            never_weighed = Judgement(verdict="inconclusive", why="the version was never weighed")
            self._accept(never_weighed, "its answers")
            return
        self._enter("probe", questions=len(self._questions))
        # On a thread of its own: meanwhile a version that dies, or a command, must be seen at once.
        answers = self._pool.submit(
            probe.ask,
            self._managed.target.url_of(self._ongoing.next),
            self._questions,
            max_tokens=self._measurement.max_new_tokens,
            sampling=self._measurement.candidate.engine.sampling(),
        )
        deadline = time.monotonic() + self._policy.probe_deadline
        while not answers.done():
            self._tick(deadline, "it did not answer the probe's questions", "error")
        judgement = probe.judge(
            answers.result(),
            self._measurement,
            max_drop=self._policy.max_score_drop,
            alpha=self._policy.error_rate,
        )
        self._evidence |= {f"probe_{name}": value for name, value in judgement.evidence.items()}
        self._accept(judgement, "its answers")

    def _shift(self) -> None:
        # Where nothing else serves there is nobody to share the traffic with, nor to compare with.
        if self._ongoing.previous is None or self._ongoing.swap:
            return
        number, steps = 0, self._policy.steps
        while number < len(steps) and not self._skips_steps():
            self._enter("shift", share=steps[number], shown=self._shown)
            number += 1 if self._observe(steps[number]) else -1

    def _observe(self, share: int) -> bool:
        """Wait until this step is decided, and return whether it is passed; else both versions are
        to be compared again at the step before. Raise RolloutStopped where it failed.
        """
        began = time.monotonic()
        tell_due = began + TELL_EVERY
        self._canary.begin_step()
        while not self._skips_steps():
            self._tick()
            self._canary.look(share)
            judgement = self._canary.judge(share)
            waited = time.monotonic() - began
            if judgement.verdict == "fail":
                why = f"at {share} % of the traffic: {judgement.why}"
                if self._canary.compares_again(share):
                    self._note(f"{why}; nobody else served, so both are compared again")
                    return False
                raise RolloutStopped("failed", "fail", why)
            if judgement.verdict == "pass" and waited >= self._policy.step_seconds:
                self._note(f"at {share} % of the traffic: {judgement.why}")
                return True
            if waited > self._policy.step_deadline:
                self._accept(judgement, f"at {share} % of the traffic")
                return True
            if (now := time.monotonic()) >= tell_due:
                tell_due = now + TELL_EVERY
                self._tell(judgement.why)
            self._canary.ask()
        return True

    def _finish(self) -> None:
        """Commit: from here on it is only ever finished."""
        # Requests that ended since the last look are figures of this rollout too.
        self._canary.look(self._ongoing.share)
        self._enter("commit", committed=True, shown=self._shown)
        self._managed.finish_rollout(self._figures())
        logger.info("%s serves %s", self._managed.name, self._release.bento)

    def _roll_back(self, stopped: RolloutStopped) -> RolloutStopped:
        managed = self._managed
        logger.warning("%s: %s is rolled back: %s", managed.name, self._release.bento, stopped.why)
        # A version that was superseded or interrupted was not found bad: it may be tried again.
        is_failure = stopped.outcome in ("failed", "aborted")
        failure = self._failure(stopped) if is_failure else None
        self._canary.look(self._ongoing.share)
        managed.roll_back(stopped.outcome, stopped.verdict, stopped.why, self._figures(), failure)
        return stopped

    def _failure(self, stopped: RolloutStopped) -> FailedRollout:
        last = self._managed.load_state().last_failure
        return FailedRollout(
            release=self._release,
            verdict=stopped.verdict,
            why=stopped.why,
            at=time.time(),
            tries=1 + (last.tries if last and last.release == self._release else 0),
        )

    # What every step does

    def _enter(self, phase: str, **fields: Any) -> None:
        """Write the next phase into the ledger, then the state; then let the gateway follow."""
        self._managed.outbox.write(self._ongoing.id, phase, **fields)
        changes = {
            key: value for key, value in fields.items() if key in OngoingRollout.model_fields
        }
        changes |= {"phase": phase, "waits_for": ""}
        self._ongoing = self._ongoing.model_copy(update=changes)
        self._managed.change_state(rollout=self._ongoing)
        self._managed.route()

    def _tell(self, waits_for: str) -> None:
        """Write down what a step waits for, for whoever follows it."""
        self._ongoing = self._ongoing.model_copy(update={"waits_for": waits_for})
        self._managed.change_state(rollout=self._ongoing)

    def _note(self, shown: str) -> None:
        """Keep what a step has shown for the ledger and the state, which the next phase writes."""
        logger.info("%s: version %s %s", self._managed.name, self._release.version, shown)
        self._shown = shown

    def _tick(
        self, deadline: float = float("inf"), wrong: str = "", verdict: str = "inconclusive"
    ) -> None:
        """Wait a moment, and as long as the target is paused.

        Args:
            deadline: `time.monotonic()` after which the rollout fails.
            wrong: what it failed to do until then.
            verdict: of that failure.

        Raises:
            RolloutStopped: the version died or takes too much memory, a person or the alias wants
                it otherwise, or time is up.
        """
        in_force = operator_commands.glance(self._managed.records)
        while True:
            if in_force.abort == self._ongoing.id:
                raise RolloutStopped("aborted", "error", "somebody aborted it")
            if (why := self._superseded()) is not None:
                raise RolloutStopped("superseded", "inconclusive", why)
            self._check_alive()
            self._pause(POLL)
            in_force = operator_commands.glance(self._managed.records)
            if not in_force.paused:
                break
        if time.monotonic() > deadline:
            raise RolloutStopped("failed", verdict, f"{wrong} within its time")

    def _check_alive(self) -> None:
        try:
            self._liveness.check()
        except NeverRan as exc:
            raise RolloutStopped("failed", self._of_never_run(), str(exc)) from exc
        except WeighbridgeError as exc:
            raise RolloutStopped("failed", "fail", str(exc)) from exc
        if time.monotonic() >= self._memory_due:
            self._memory_due = time.monotonic() + MEMORY_EVERY
            self._check_memory()

    def _of_never_run(self) -> str:
        """Return the verdict on a version that found no room, or no image: nobody has seen it, so
        it is tried again later, but not where each try ends what serves.
        """
        return "fail" if self._ongoing.swap else "error"

    def _check_memory(self) -> None:
        used, allowed = self._liveness.memory(), self._allowed_memory()
        self._evidence["memory"] = max(used, self._evidence.get("memory", 0.0))
        if allowed and used > allowed:
            raise RolloutStopped(
                "failed",
                "fail",
                f"it takes {human_size(used)} of memory; {human_size(allowed)} is allowed",
            )

    def _allowed_memory(self) -> int:
        """Return the most bytes that it may take; 0 for no limit, where its peak is not known."""
        peak = self._release.peak_memory
        return int(peak * self._policy.memory_factor) + self._policy.memory_reserve if peak else 0

    def _accept(self, judgement: Judgement, what: str) -> None:
        """Go on, wait for a person, or raise RolloutStopped: no data is never a pass."""
        if judgement.verdict == "pass":
            return
        if judgement.verdict == "inconclusive" and self._policy.on_inconclusive == "pause":
            self._managed.pause(f"{what}: {judgement.why}")
            while not self._skips_steps():
                self._tick()
                if not operator_commands.glance(self._managed.records).paused:
                    return
            return
        raise RolloutStopped("failed", judgement.verdict, f"{what}: {judgement.why}")

    def _skips_steps(self) -> bool:
        """Whether somebody wants this rollout to go on at once."""
        return operator_commands.glance(self._managed.records).now == self._ongoing.id

    def _probe_questions(self) -> list[probe.ProbeQuestion]:
        if self._measurement is None:
            return []
        return probe.questions_of(
            self._measurement, self._managed.workspace.store, self._policy.questions
        )

    def _figures(self) -> dict[str, float]:
        """Return what was seen while it went on."""
        canary = self._canary
        return {
            **canary.figures(),
            **self._evidence,
            "requests": canary.requests,
            "failed": canary.failed,
        }

    @staticmethod
    def _pause(seconds: float) -> None:
        time.sleep(seconds)
