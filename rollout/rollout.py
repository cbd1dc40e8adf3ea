"""A rollout: a new version beside the old one, asked, given traffic by steps, kept or taken back.

::

    start ─ probe ─ shift 10 % … 100 % ─ commit ─ (the old one drains, and is stopped)
      └───────┴──────────┴── back: all traffic to the old one, the new one drains, and is stopped

Always in this order: the ledger says what is about to be done, the record (`state.json`) says it,
the effect follows. So whoever opens the target after a crash knows what was going on: before
`commit` a rollout is taken back, from there on it is finished (rollout/managed_target.py).
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.formatting import human_size
from weighbridge.rollout import commands, probe
from weighbridge.rollout.canary import Canary
from weighbridge.rollout.managed_target import FailedRollout, ManagedTarget, OngoingRollout
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.serving.targets.base import Liveness, Release
from weighbridge.tasks.measurement import Measurement

logger = logging.getLogger("weighbridge.rollout")

POLL = 0.1
MEMORY_EVERY = 1.0
"""Seconds between two looks at a version's memory."""
SWAP_RESERVE = 1.05
"""What a version needs beside the old one, over its measured peak."""


class RolloutStopped(Exception):
    """The rollout goes no further: `outcome` is failed, aborted, superseded or interrupted."""

    def __init__(self, outcome: str, verdict: str, why: str) -> None:
        super().__init__(why)
        self.outcome, self.verdict, self.why = outcome, verdict, why


class Rollout:
    """One attempt to have `release` serve at a site. Call `run` inside the site's lock."""

    def __init__(
        self,
        managed: ManagedTarget,
        release: Release,
        trigger: str,
        measurement: Measurement | None,
        superseded: Callable[[], str] = lambda: "",
    ) -> None:
        self._managed = managed
        self._release = release
        self._trigger = trigger
        self._measurement = measurement
        self._superseded = superseded
        policy = managed.args.rollout
        self._policy = policy
        # Going back must be quick, and goes to what has served already.
        self._steps, self._least = (
            ((100,), 0.0) if trigger == "rollback" else (policy.steps, policy.step_seconds)
        )
        self._evidence: dict[str, float] = {}
        self._memory_due = 0.0
        self._questions = self._all_questions()
        self._pool = ThreadPoolExecutor(1)

    def run(self) -> RolloutStopped | None:
        """None when it serves; else why it does not. What served before serves then.

        Raises:
            BadInput: the address belongs to somebody else; nothing was touched.
            Unavailable: its Bento or environment can't be had; nothing was touched.
        """
        managed = self._managed
        managed.route()
        self._under = managed.begin(managed.prepare(self._release), self._trigger)
        self._canary = Canary(
            self._policy,
            self._under.previous,
            self._under.next,
            managed.target.traffic(),
            self._questions,
            measurement.max_new_tokens if (measurement := self._measurement) else 128,
        )
        try:
            self._start()
            self._probe()
            self._shift()
        except RolloutStopped as stopped:
            return self._back(stopped)
        except WeighbridgeError as exc:
            return self._back(RolloutStopped("failed", "error", str(exc)))
        except KeyboardInterrupt:
            self._back(RolloutStopped("interrupted", "error", "interrupted"))
            raise
        else:
            self._finish()
            return None
        finally:
            self._canary.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    # The steps

    def _start(self) -> None:
        managed, new = self._managed, self._under.next
        self._make_room()
        self._to("start", revision=new.name, bento=new.release.bento)
        began = time.monotonic()
        self._liveness: Liveness = managed.target.start(new)
        while not managed.target.answers(new):
            self._tick(began + self._policy.start_deadline, "it gave no completion", "fail")
        self._evidence["start_seconds"] = time.monotonic() - began
        self._to("admit", admitted=True)

    def _make_room(self) -> None:
        """Where memory does not hold both, the old one goes first; `_back` starts it again."""
        managed, old, need = self._managed, self._under.previous, self._release.peak_memory
        free = managed.target.free_memory()
        if (
            old is None
            or not need
            or free is None
            or need * SWAP_RESERVE + self._policy.memory_reserve <= free
        ):
            return
        logger.warning(
            "%s needs %s and %s are free: %s is stopped first",
            self._release.bento,
            human_size(need),
            human_size(free),
            old.release.bento,
        )
        self._to("swap", swap=True, need=need, free=free)
        deadline = time.monotonic() + self._policy.drain_seconds
        while managed.target.in_flight(old) and time.monotonic() < deadline:
            self._pause(POLL)
        managed.target.stop(old)

    def _probe(self) -> None:
        if self._measurement is None:
            self._accept(
                Judgement(verdict="inconclusive", why="the version was never weighed"),
                "its answers",
            )
            return
        self._to("probe", questions=len(self._questions))
        asked = self._pool.submit(
            probe.ask,
            self._under.next.url,
            self._questions,
            max_tokens=self._measurement.max_new_tokens,
        )
        began = time.monotonic()
        while not asked.done():
            self._tick(
                began + self._policy.step_deadline,
                "it did not answer the probe's questions",
                "error",
            )
        judged = probe.judge(
            asked.result(),
            self._measurement,
            max_drop=self._policy.max_score_drop,
            alpha=self._policy.error_rate,
        )
        self._evidence |= {f"probe_{name}": value for name, value in judged.evidence.items()}
        self._accept(judged, "its answers")

    def _shift(self) -> None:
        if self._under.previous is None or self._under.swap:
            return
        for share in self._steps:
            if self._skips():
                return
            self._to("shift", share=share)
            self._observe(share)

    def _observe(self, share: int) -> None:
        """Until this step is decided: enough was seen, and nothing speaks against it."""
        began = time.monotonic()
        self._canary.begin_step()
        while not self._skips():
            self._tick()
            self._canary.look(share)
            judged = self._canary.judge()
            waited = time.monotonic() - began
            if judged.verdict == "fail":
                raise RolloutStopped("failed", "fail", f"at {share} % of the traffic: {judged.why}")
            if judged.verdict == "pass" and waited >= self._least:
                logger.info(
                    "%s: version %s at %d %%: %s",
                    self._managed.name,
                    self._release.version,
                    share,
                    judged.why,
                )
                return
            if waited > self._policy.step_deadline:
                self._accept(judged, f"at {share} % of the traffic")
                return
            self._canary.ask()

    def _finish(self) -> None:
        """From here on it is only ever finished."""
        self._canary.look(self._under.share)
        self._to("commit", committed=True)
        self._managed.finish(self._figures())
        logger.info("%s serves %s", self._managed.name, self._release.bento)

    def _back(self, stopped: RolloutStopped) -> RolloutStopped:
        managed = self._managed
        logger.warning("%s: %s is taken back: %s", managed.name, self._release.bento, stopped.why)
        failed = None
        if stopped.outcome in ("failed", "aborted"):
            record = managed.load()
            tries = (
                record.failed.tries
                if record.failed and record.failed.release == self._release
                else 0
            )
            failed = FailedRollout(
                release=self._release,
                verdict=stopped.verdict,
                why=stopped.why,
                at=time.time(),
                tries=tries + 1,
            )
        self._canary.look(self._under.share)
        managed.back(stopped.outcome, stopped.verdict, stopped.why, self._figures(), failed)
        return stopped

    # What every step does

    def _to(self, event: str, **changes: Any) -> None:
        """The ledger says what comes next, the record says it, the gateway does it."""
        self._managed.outbox.write(self._under.id, event, **changes)
        known = {
            name: value for name, value in changes.items() if name in OngoingRollout.model_fields
        }
        self._under = self._under.model_copy(update={"phase": event, **known})
        self._managed.change(rollout=self._under)
        self._managed.route()

    def _tick(
        self, deadline: float = float("inf"), wrong: str = "", verdict: str = "inconclusive"
    ) -> None:
        """Wait a moment; see whether the version lives, whether somebody wants it otherwise,
        whether time is up.
        """
        told = commands.read(self._managed.folder)
        while True:
            if told.abort == self._under.id:
                raise RolloutStopped("aborted", "error", "somebody aborted it")
            if why := self._superseded():
                raise RolloutStopped("superseded", "inconclusive", why)
            self._alive()
            self._pause(POLL)
            told = commands.read(self._managed.folder)
            if not told.paused:
                break
        if time.monotonic() > deadline:
            raise RolloutStopped("failed", verdict, f"{wrong} within its time")

    def _alive(self) -> None:
        try:
            self._liveness.check()
        except WeighbridgeError as exc:
            raise RolloutStopped("failed", "fail", str(exc)) from exc
        if time.monotonic() >= self._memory_due:
            self._memory_due = time.monotonic() + MEMORY_EVERY
            self._fits()

    def _fits(self) -> None:
        used, allowed = self._liveness.memory(), self._allowed_memory()
        self._evidence["memory"] = max(used, self._evidence.get("memory", 0.0))
        if allowed and used > allowed:
            raise RolloutStopped(
                "failed",
                "fail",
                f"it takes {human_size(used)} of memory; {human_size(allowed)} is allowed",
            )

    def _allowed_memory(self) -> int:
        peak = self._release.peak_memory
        return int(peak * self._policy.memory_factor) + self._policy.memory_reserve if peak else 0

    def _accept(self, judged: Judgement, what: str) -> None:
        """Go on, wait for a person, or raise: no data is never a pass."""
        if judged.verdict == "pass":
            return
        if judged.verdict == "inconclusive" and self._policy.on_inconclusive == "pause":
            self._managed.pause(f"{what}: {judged.why}")
            while not self._skips():
                self._tick()
                if not commands.read(self._managed.folder).paused:
                    return
            return
        raise RolloutStopped("failed", judged.verdict, f"{what}: {judged.why}")

    def _skips(self) -> bool:
        return commands.read(self._managed.folder).now == self._under.id

    def _all_questions(self) -> list[probe.ProbeQuestion]:
        if self._measurement is None:
            return []
        return probe.questions_of(
            self._measurement, self._managed.workspace.store, self._policy.questions
        )

    def _figures(self) -> dict[str, float]:
        """What was seen while it went on."""
        canary = self._canary
        return {
            **canary.judge().evidence,
            **self._evidence,
            "requests": canary.requests,
            "failed": canary.failed,
        }

    @staticmethod
    def _pause(seconds: float) -> None:
        time.sleep(seconds)
