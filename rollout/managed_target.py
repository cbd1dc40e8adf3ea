"""A target's site: what it serves, what is being done there, and how to find out after a crash.

::

    HOME/targets/NAME/state.json      the record; the gateway and supervisord are made to follow it
    HOME/targets/NAME/ledger.jsonl    lines of the ledger that MLflow may not have yet
    HOME/targets/NAME/orders.json     what people told the rollout
    HOME/targets/NAME/lock            held by whoever changes anything; the kernel frees it when its
        holder dies
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.files import replace_text
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import commands
from weighbridge.rollout.deploy_args import DeployArgs
from weighbridge.rollout.outbox import Outbox
from weighbridge.serving.targets.base import Release, Revision, Share, Target, target_for

logger = logging.getLogger("weighbridge.site")

R = TypeVar("R", bound=Revision)
RESTORE_TIMEOUT = 600.0
"""Seconds that the old version is waited for after a swap that failed."""


class OngoingRollout(BaseModel, Generic[R]):
    """A rollout under way."""

    model_config = ConfigDict(frozen=True)

    id: str
    trigger: str
    began: float
    next: R
    previous: R | None = None
    phase: str = "begin"
    admitted: bool = Field(
        False, description="The gateway knows it; with share 0 only pinned requests reach it."
    )
    share: int = Field(0, description="Percent of new requests that it gets.")
    swap: bool = Field(
        False, description="Memory does not hold both: the old one was stopped first."
    )
    committed: bool = Field(False, description="From here on it is finished, never taken back.")


class DrainingRevision(BaseModel, Generic[R]):
    """A version that gets nothing new and finishes what it has."""

    model_config = ConfigDict(frozen=True)

    revision: R
    until: float = Field(description="Unix time at which it is stopped in any case.")
    rollout: str


class FailedRollout(BaseModel):
    """The last attempt that failed; the same release is not tried again by itself, or only after a
    while.
    """

    model_config = ConfigDict(frozen=True)

    release: Release
    verdict: str
    why: str
    at: float
    tries: int

    @property
    def retry_at(self) -> float:
        """A release that was found bad is left alone; where it could not be judged, later, and
        later each time.
        """
        return (
            float("inf") if self.verdict == "fail" else self.at + min(3600.0, 15.0 * 2**self.tries)
        )


class TargetState(BaseModel, Generic[R]):
    """All that is known of a site."""

    model_config = ConfigDict(frozen=True)

    current: R | None = None
    rollout: OngoingRollout[R] | None = None
    retiring: tuple[DrainingRevision[R], ...] = ()
    kept: tuple[Release, ...] = Field(
        (), description="Served before, newest first: what `rollback` goes back to."
    )
    failed: FailedRollout | None = None
    deploy: dict[str, Any] = Field(
        default_factory=dict, description="The arguments it was last deployed with."
    )
    wish: str = Field("", description="Version that the alias named when it was last read.")
    note: str = Field("", description="Why the fact is not the wish.")


@dataclass(frozen=True)
class ManagedTarget:
    """One target of this machine."""

    name: str
    args: DeployArgs
    workspace: Workspace

    @property
    def home(self) -> Path:
        return self.workspace.settings.home

    @property
    def folder(self) -> Path:
        return folder_of(self.name, self.home)

    @cached_property
    def target(self) -> Target[Any, Any]:
        return target_for(self.name, self.args.target, self.home)

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else changes anything here; waits, and says so, while somebody does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process deploys to %s: waiting for it", self.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # The record

    def load(self) -> TargetState[Any]:
        """Raises Unavailable when it is damaged."""
        return read_state(self.folder, self.target.revision_model)

    def save(self, record: TargetState[Any]) -> TargetState[Any]:
        """Raises nothing that leaves half a record."""
        replace_text(self.folder / "state.json", record.model_dump_json(indent=1))
        return record

    def change(self, **changes: Any) -> TargetState[Any]:
        """Save the record with some fields replaced."""
        return self.save(self.load().model_copy(update=changes))

    # What a rollout does here

    def prepare(self, release: Release) -> Revision:
        """A revision with a name that nothing here has. Raises Unavailable when its Bento can't be
        had.
        """
        record = self.load()
        taken = {one.revision.name for one in record.retiring} | {
            record.current.name if record.current else ""
        }
        taken |= self.target.running()
        revision: Revision = self.target.prepare(release, taken)
        return revision

    def begin(self, new: Revision, trigger: str) -> OngoingRollout[Any]:
        """Write down what is about to be tried."""
        previous = self.load().current
        under: OngoingRollout[Any] = OngoingRollout(
            id=uuid.uuid4().hex, trigger=trigger, began=time.time(), next=new, previous=previous
        )
        release = new.release
        self.outbox.write(
            under.id,
            "begin",
            target=self.name,
            model=release.name,
            version=release.version,
            previous=previous.release.version if previous else "",
            trigger=trigger,
            digests={"bento": release.digest},
            bento=release.bento,
        )
        self.change(rollout=under, note="", deploy=self.args.model_dump(mode="json"))
        return under

    def finish(self, figures: dict[str, float], detail: str = "") -> None:
        """The new version takes all; the old one drains. Called again after a crash, it ends the
        same.
        """
        record = self.load()
        under = record.rollout
        assert under is not None
        old = under.previous
        gone = () if old is None or under.swap else (self._retiring(old, under.id),)
        kept = tuple(one for one in record.kept if one.version != under.next.release.version)
        if old is not None and old.release.version != under.next.release.version:
            kept = (old.release, *(one for one in kept if one.version != old.release.version))
        self._end(under, "serving", "pass", detail, figures)
        self.change(
            current=under.next.model_copy(update={"since": time.time()}),
            rollout=None,
            retiring=(*record.retiring, *gone),
            kept=kept[: self.workspace.settings.history_kept],
            failed=None,
            note="",
        )
        self.route()
        self.settle()

    def back(
        self,
        outcome: str,
        verdict: str,
        why: str,
        figures: dict[str, float],
        failed: FailedRollout | None = None,
    ) -> None:
        """All traffic to the old version; the new one drains. Called again after a crash, it ends
        the same.
        """
        record = self.load()
        under = record.rollout
        assert under is not None
        self.outbox.write(under.id, "back", why=why)
        gone = [] if under.swap else [self._retiring(under.next, under.id)]
        if under.swap:
            self._restore(under, figures)
        self._end(under, outcome, verdict, why, figures)
        self.change(
            rollout=None,
            retiring=(*record.retiring, *gone),
            failed=failed or record.failed,
            note=why,
        )
        self.route()
        self.settle()

    def pause(self, why: str) -> None:
        """Wait for a person."""
        logger.warning(
            "%s is paused: %s; `weighbridge promote --now`, `abort` or `resume`", self.name, why
        )
        commands.issue(self.folder, "pause", "")
        self.change(note=why)

    def route(self) -> None:
        """Have the gateway do what the record says."""
        self.target.route(traffic_shares(self.load()))

    def settle(self) -> bool:
        """Stop what has drained, or has had its time; True when nothing drains any more."""
        left, record = [], self.load()
        if record.retiring and not self.target.is_routed(traffic_shares(record)):
            # a killed process may have written down that one drains, and not yet made it drain
            self.route()
        for one in record.retiring:
            cut = self.target.in_flight(one.revision)
            if cut and time.time() < one.until:
                left.append(one)
                continue
            self.outbox.write(one.rollout, "stop", revision=one.revision.name, cut=cut)
            if cut:
                logger.warning("%s %s: %d requests are cut", self.name, one.revision.name, cut)
            self.target.stop(one.revision)
        if len(left) < len(record.retiring):
            self.change(retiring=tuple(left))
            self.route()
        return not left

    def recover(self) -> None:
        """Settle what a killed process left: a rollout is finished from `commit` on, else taken
        back.
        """
        under = self.load().rollout
        for begun in self.outbox.unended():
            if under is None or begun != under.id:
                self.outbox.write(
                    begun,
                    "end",
                    outcome="interrupted",
                    verdict="error",
                    detail="interrupted at `begin`",
                )
        if under is None:
            return
        logger.warning(
            "%s: an interrupted rollout of %s is settled", self.name, under.next.release.bento
        )
        if under.committed:
            self._keep_running(under.next)
            self.finish({}, "finished after an interruption")
        else:
            if under.previous is not None and not under.swap:
                self._keep_running(under.previous)
            self.back("interrupted", "error", f"interrupted at `{under.phase}`", {})

    def mend(self) -> None:
        """The two invariants, whatever happened: what is routed to runs, and what runs is known."""
        record = self.load()
        known = {one.revision.name for one in record.retiring}
        if record.current is not None:
            known.add(record.current.name)
            self._keep_running(record.current)
            if not self.target.is_routed(traffic_shares(record)):
                self.route()
        for name in self.target.running() - known:
            logger.warning("%s: %s runs and nobody knows why: it is stopped", self.name, name)
            self.target.stop_named(name)
        self.settle()

    def down(self) -> None:
        """Stop everything here. The record keeps what served, for whoever brings it up again."""
        record = self.load()
        for name in self.target.running():
            self.target.stop_named(name)
        self.target.close()
        if record.rollout:
            self._end(record.rollout, "interrupted", "error", "taken down", {})
        self.change(rollout=None, retiring=())

    def _keep_running(self, revision: Revision) -> None:
        """What is about to get traffic runs, even where the machine was started anew."""
        if not self.target.is_healthy(revision):
            self.target.start(revision)

    def _retiring(self, revision: Revision, rollout: str) -> DrainingRevision[Any]:
        return DrainingRevision(
            revision=revision, until=time.time() + self.args.rollout.drain_seconds, rollout=rollout
        )

    def _restore(self, under: OngoingRollout[Any], figures: dict[str, float]) -> None:
        """The old version serves again after a swap; timed."""
        old, began = under.previous, time.monotonic()
        assert old is not None
        self.target.stop(under.next)
        self.target.start(old)
        while not self.target.answers(old):
            if time.monotonic() - began > RESTORE_TIMEOUT:
                raise Unavailable(
                    f"restoring {old.release.bento}", "it does not answer", "see its log"
                )
            time.sleep(0.1)
        figures["restore_seconds"] = time.monotonic() - began

    def _end(
        self,
        under: OngoingRollout[Any],
        outcome: str,
        verdict: str,
        detail: str,
        figures: dict[str, float],
    ) -> None:
        counts = {name: int(figures.pop(name, 0)) for name in ("requests", "failed")}
        evidence = {name: round(value, 4) for name, value in figures.items()}
        if self.outbox.ended(under.id):
            return  # it was written before a crash
        self.outbox.write(
            under.id,
            "end",
            outcome=outcome,
            verdict=verdict,
            detail=detail,
            evidence=evidence,
            **counts,
        )


def folder_of(name: str, home: Path) -> Path:
    return home / "targets" / name


def known_targets(home: Path) -> list[str]:
    """Every target that something was deployed to."""
    return sorted(path.parent.name for path in (home / "targets").glob("*/state.json"))


def open_target(name: str, workspace: Workspace) -> ManagedTarget | None:
    """A site by the arguments it was last deployed with; None where nothing ever was."""
    record = read_state(folder_of(name, workspace.settings.home), Revision)
    return (
        ManagedTarget(name, DeployArgs.model_validate(record.deploy), workspace)
        if record.deploy
        else None
    )


def read_state(folder: Path, revision: type[Revision]) -> TargetState[Any]:
    """Raises Unavailable when it is damaged."""
    path = folder / "state.json"
    try:
        return TargetState[revision].model_validate_json(path.read_bytes())  # type: ignore[valid-type]
    except FileNotFoundError:
        return TargetState()
    except (ValueError, ValidationError) as exc:
        raise Unavailable(
            f"reading {path}", "it is damaged", "remove it, then deploy again"
        ) from exc


def traffic_shares(record: TargetState[Any]) -> list[Share[Any]]:
    """Who gets how much of the new requests, as the record says."""
    found: list[Share[Any]] = [
        Share(revision=one.revision, weight=0, draining=True) for one in record.retiring
    ]
    under, current = record.rollout, record.current
    if under is not None and (under.admitted or under.committed):
        new = 100 if under.committed else under.share
        found.append(Share(revision=under.next, weight=new))
        if current is not None and not under.swap:
            found.append(Share(revision=current, weight=100 - new))
    elif current is not None:
        swapped = under is not None and under.swap
        found.append(Share(revision=current, weight=0 if swapped else 100, draining=swapped))
    return found


def mirror_into(registry: Any, managed: ManagedTarget) -> None:
    """Bring the ledger's lines into MLflow; where it does not answer, they wait."""
    lines = managed.outbox.unmirrored()
    if not lines:
        return
    try:
        registry.mirror(lines)
    except WeighbridgeError as exc:
        logger.warning("the ledger of %s waits for MLflow: %s", managed.name, exc)
        return
    managed.outbox.mirrored(len(lines), keep=managed.load().rollout is not None)
