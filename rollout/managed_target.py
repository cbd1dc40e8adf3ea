"""A target and its state: the transitions of a rollout, and repair after a crash.

Every transition is written down before its effect and may be done again: whoever comes after a
process that died reads in the state (state.py) how far it came, and goes on from there.
"""

import contextlib
import logging
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import operator_commands
from weighbridge.rollout.deploy_args import DeployArgs
from weighbridge.rollout.outbox import Outbox
from weighbridge.rollout.state import (
    DrainingRevision,
    FailedRollout,
    OngoingRollout,
    TargetState,
    folder_of,
    read_state,
    state_file,
    traffic_shares,
    write_state,
)
from weighbridge.serving.targets.base import Release, Revision, Target, target_for

logger = logging.getLogger(__name__)

RESTORE_TIMEOUT = 600.0
"""Seconds that the old version is waited for after a swap that failed."""
RESTORE_POLL = 0.1
"""Seconds between two looks at whether it answers."""


@dataclass(frozen=True)
class ManagedTarget:
    """One target of this machine."""

    name: str
    args: DeployArgs
    """It was opened with; later ones may be in force by now, and the gateway goes by those."""
    workspace: Workspace

    @property
    def home(self) -> Path:
        return self.workspace.settings.home

    @cached_property
    def folder(self) -> Path:
        return folder_of(self.name, self.home)

    @cached_property
    def target(self) -> Target[Any, Any]:
        return target_for(self.name, self.args.target, self.home)

    @cached_property
    def _document(self) -> dict[str, Any]:
        """The arguments it was opened with, as they are written down."""
        return self.args.model_dump(mode="json")

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let nobody else change anything here; wait, and say so, while somebody does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._file_lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process deploys to %s: waiting for it", self.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # The state

    @property
    def changed_at(self) -> float:
        """Unix time at which the state was last written."""
        return state_file(self.folder).stat().st_mtime

    def load_state(self) -> TargetState[Any]:
        """Return what is known of the target. Raises Unavailable when the file is damaged."""
        return read_state(self.folder, self.target.revision_model)

    def load_state_if_idle(self) -> TargetState[Any] | None:
        """Return the state, read while nobody changes anything here; None while somebody does."""
        try:
            with self._file_lock().acquire(timeout=0):
                return self.load_state()
        except Timeout:
            return None

    def save_state(self, state: TargetState[Any]) -> TargetState[Any]:
        """Write the state down, whole or not at all, and return it."""
        write_state(self.folder, state)
        return state

    def change_state(self, **changes: Any) -> TargetState[Any]:
        """Write the state down with some fields replaced, and return it."""
        with self._state_lock():
            return self.save_state(self.load_state().model_copy(update=changes))

    # The arguments in force

    def adopt(self, since: float) -> None:
        """Write down that the arguments it was opened with are in force, unless later ones are.

        Args:
            since: Unix time at which they were given.
        """
        with self._state_lock():
            state = self.load_state()
            changes = {"deploy_args": self._document, "deploy_args_since": since}
            is_known = changes == {name: getattr(state, name) for name in changes}
            if since >= state.deploy_args_since and not is_known:
                self.save_state(state.model_copy(update=changes))

    def put_in_force(self) -> float:
        """Have the arguments it was opened with hold from now on, also while a rollout goes on.

        Returns:
            The Unix time since which they hold.

        Raises:
            BadInput: the address can't be had so; what was in force before still is.
        """
        self.target.check()
        with self._state_lock():
            before = self.load_state()
        # Later than those before, whatever has become of the clock.
        since = max(time.time(), math.nextafter(before.deploy_args_since, math.inf))
        self.adopt(since)
        try:
            if traffic_shares(before):
                self.route()
        except BadInput:
            self.change_state(
                deploy_args=before.deploy_args, deploy_args_since=before.deploy_args_since
            )
            raise
        return since

    # The transitions of a rollout

    def prepare(self, release: Release) -> Revision:
        """Return a revision of this release, with a name that nothing here has.

        Raises:
            Unavailable: its Bento or its environment can't be had.
        """
        state = self.load_state()
        taken = self.target.running() | {draining.revision.name for draining in state.draining}
        if state.current is not None:
            taken.add(state.current.name)
        revision: Revision = self.target.prepare(release, taken)
        return revision

    def begin_rollout(self, new: Revision, trigger: str) -> OngoingRollout[Any]:
        """Write down what is about to be tried."""
        previous = self.load_state().current
        rollout: OngoingRollout[Any] = OngoingRollout(
            id=uuid.uuid4().hex, trigger=trigger, began=time.time(), next=new, previous=previous
        )
        self.outbox.write_begin(rollout.id, self.name, new.release, previous, trigger)
        self.change_state(rollout=rollout, reason="")
        return rollout

    def finish_rollout(self, figures: dict[str, float], detail: str = "") -> None:
        """Give the new version all traffic; the old one drains.

        Called again after a crash, it ends the same.
        """
        state = self.load_state()
        rollout = state.rollout
        assert rollout is not None
        old = rollout.previous
        # After a swap the old version was stopped already: nothing of it is left to drain.
        drains = () if old is None or rollout.swap else (self._draining(old, rollout.id),)
        # The ledger before the state: after a crash in between this method is called once more.
        self.outbox.write_end(rollout.id, "serving", "pass", detail, figures)
        self.change_state(
            current=rollout.next.model_copy(update={"since": time.time()}),
            rollout=None,
            draining=(*state.draining, *drains),
            previous_releases=self._previous_releases(state, rollout),
            last_failure=None,
            reason="",
        )
        self.route()
        self.stop_drained()

    def roll_back(
        self,
        outcome: str,
        verdict: str,
        why: str,
        figures: dict[str, float],
        failure: FailedRollout | None = None,
    ) -> None:
        """Give the old version all traffic again; the new one drains.

        Called again after a crash, it ends the same.

        Raises:
            Unavailable: it cannot be written down, the disk is full. What served before serves; how
                the rollout ended is settled by the next call.
        """
        state = self.load_state()
        rollout = state.rollout
        assert rollout is not None
        drains = () if rollout.swap else (self._draining(rollout.next, rollout.id),)
        changes: dict[str, Any] = {
            "rollout": None,
            "draining": (*state.draining, *drains),
            "last_failure": failure or state.last_failure,
            "reason": why,
        }
        try:
            self.outbox.write(rollout.id, "back", why=why)
            if rollout.swap:
                self._restore_previous(rollout, figures)
            self.outbox.write_end(rollout.id, outcome, verdict, why, figures)
            self.change_state(**changes)
        except Unavailable:
            self._go_back_unwritten(rollout, state.model_copy(update=changes), figures)
            raise
        self.route()
        self.stop_drained()

    def record_restart(self, revision: Revision, at: float, why: str) -> bool:
        """Write into the ledger that a revision was started again; False while a rollout goes on.

        It is an entry of its own there, which begins and ends with the version that serves.
        """
        try:
            with self._file_lock().acquire(timeout=0):
                restart = uuid.uuid4().hex
                self.outbox.write_begin(restart, self.name, revision.release, revision, "watch")
                self.outbox.write(restart, "restart", revision=revision.name, at=at)
                self.outbox.write(restart, "end", outcome="restarted", verdict="error", detail=why)
        except Timeout:
            return False
        return True

    def pause(self, why: str) -> None:
        """Pause rollouts here until a person decides."""
        logger.warning(
            "%s is paused: %s; `weighbridge promote --now`, `abort` or `resume`", self.name, why
        )
        operator_commands.issue(self.folder, "pause", "")
        self.change_state(reason=why)

    def route(self) -> None:
        """Have the gateway share out new requests as the state says, by the arguments in force."""
        # State and arguments are read inside the lock: whoever comes last goes by the newest.
        with self._state_lock():
            state = self.load_state()
            self._target_in_force(state).route(traffic_shares(state))

    def keep_address(self) -> None:
        """Have the address follow arguments and files, also while MLflow or a rollout keeps others.

        While a version is rolled out only who is let in changes: the rollout does all else.
        """
        state = self.load_state()
        if state.rollout is not None:
            self._target_in_force(state).refresh_access()
        elif traffic_shares(state) and not self.is_routed():
            self.route()

    def is_routed(self) -> bool:
        """Whether the gateway does what the state says, by the arguments in force."""
        state = self.load_state()
        return self._target_in_force(state).is_routed(traffic_shares(state))

    def stop_drained(self) -> bool:
        """Stop what has drained, or has had its time; return whether nothing drains any more."""
        state = self.load_state()
        # A process that was killed may have written down that one drains, and no more than that.
        if state.draining and not self.is_routed():
            self.route()
        still_draining = tuple(
            draining for draining in state.draining if not self._stop_if_drained(draining)
        )
        if len(still_draining) < len(state.draining):
            self.change_state(draining=still_draining)
            self.route()
        return not still_draining

    # Parts of the above

    def _file_lock(self) -> FileLock:
        return FileLock(self.folder / "lock")

    def _state_lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "state.lock")

    def _target_in_force(self, state: TargetState[Any]) -> Target[Any, Any]:
        """Return the target by the arguments in force: a rollout may have begun by earlier ones."""
        if not state.deploy_args or state.deploy_args == self._document:
            target = self.target
        else:
            args = read_deploy_args(self.name, state.deploy_args)
            target = target_for(self.name, args.target, self.home)
        # States from before the time was kept may have missed the latest arguments.
        return target if state.deploy_args_since else target.not_more_open()

    def _draining(self, revision: Revision, rollout: str) -> DrainingRevision[Any]:
        until = time.time() + self.args.rollout.drain_seconds
        return DrainingRevision(revision=revision, until=until, rollout=rollout)

    def _stop_if_drained(self, draining: DrainingRevision[Any]) -> bool:
        """Stop it unless it has requests and time for them; return whether it was stopped."""
        in_flight = self.target.in_flight(draining.revision)
        if in_flight and time.time() < draining.until:
            return False
        name = draining.revision.name
        self.outbox.write(draining.rollout, "stop", revision=name, cut=in_flight)
        if in_flight:
            logger.warning("%s %s: %d requests are cut", self.name, name, in_flight)
        self.target.stop(draining.revision)
        return True

    def _previous_releases(
        self, state: TargetState[Any], rollout: OngoingRollout[Any]
    ) -> tuple[Release, ...]:
        """Return the releases to go back to once the rollout is finished, each version once."""
        new, old = rollout.next.release, rollout.previous
        releases = state.previous_releases
        if old is not None:
            others = (release for release in releases if release.version != old.release.version)
            releases = (old.release, *others)
        releases = tuple(release for release in releases if release.version != new.version)
        return releases[: self.workspace.settings.history_kept]

    def _restore_previous(self, rollout: OngoingRollout[Any], figures: dict[str, float]) -> None:
        """Let the old version serve again after a swap, and note how long that took."""
        old, began = rollout.previous, time.monotonic()
        assert old is not None
        self.target.stop(rollout.next)  # first: memory does not hold both
        self.target.start(old)
        while not self.target.answers(old):
            if time.monotonic() - began > RESTORE_TIMEOUT:
                raise Unavailable(
                    f"restoring {old.release.bento}", "it does not answer", "see its log"
                )
            time.sleep(RESTORE_POLL)
        figures["restore_seconds"] = time.monotonic() - began

    def _go_back_unwritten(
        self, rollout: OngoingRollout[Any], back: TargetState[Any], figures: dict[str, float]
    ) -> None:
        """Do what rolls back without a word in the files: traffic does not wait for a disk."""
        old = rollout.previous
        if rollout.swap and old is not None and not self.target.is_healthy(old):
            self._restore_previous(rollout, figures)
        with self._state_lock():
            self._target_in_force(self.load_state()).route(traffic_shares(back))


def open_target(name: str, workspace: Workspace) -> ManagedTarget | None:
    """Return a target with the arguments in force; None where nothing was ever deployed there."""
    deploy_args = read_state(folder_of(name, workspace.settings.home), Revision).deploy_args
    if not deploy_args:
        return None
    return ManagedTarget(name, read_deploy_args(name, deploy_args), workspace)


def read_deploy_args(name: str, document: Mapping[str, Any]) -> DeployArgs:
    """Return the arguments of a target, as they were written down.

    Raises:
        BadInput: they are not understood any more.
    """
    try:
        return DeployArgs.model_validate(document)
    except ValueError as exc:
        raise BadInput(f"reading target '{name}'", str(exc), "run its recipe again") from exc
