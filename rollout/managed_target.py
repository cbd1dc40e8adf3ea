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
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import operator_commands
from weighbridge.rollout.deploy_args import DeployArgs, read_deploy_args
from weighbridge.rollout.outbox import Outbox
from weighbridge.rollout.state import (
    DrainingRevision,
    FailedRollout,
    OngoingRollout,
    TargetState,
    home_records,
    parse_state,
    previous_releases,
    read_state,
    state_document,
    traffic_shares,
)
from weighbridge.serving.targets.base import Release, Revision, Target, target_for
from weighbridge.serving.targets.records import STATE, LockLost, TargetLocked, TargetRecords

logger = logging.getLogger(__name__)

RESTORE_TIMEOUT = 600.0
"""Seconds that the old version is waited for after a swap that failed."""
RESTORE_POLL = 0.1
"""Seconds between two looks at whether it answers."""


@dataclass(frozen=True)
class ManagedTarget:
    """One target and what is written down of it."""

    name: str
    args: DeployArgs
    """It was opened with; later ones may be in force by now, and the gateway goes by those."""
    workspace: Workspace
    locked: TargetRecords | None = None
    """Its records under the target's lock, where that is held."""

    @property
    def home(self) -> Path:
        return self.workspace.settings.home

    @cached_property
    def target(self) -> Target[Any, Any]:
        return target_for(self.name, self.args.target, self.home)

    @property
    def address_here(self) -> str:
        """The base URL at which this process reaches the address, whatever clients call it."""
        current = self.load_state().current
        return self.target.address_here(current) if current else self.target.address

    @cached_property
    def records(self) -> TargetRecords:
        return self.locked or self.target.records()

    @cached_property
    def _document(self) -> dict[str, Any]:
        """The arguments it was opened with, as they are written down."""
        return self.args.model_dump(mode="json")

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.records)

    @contextlib.contextmanager
    def lock(self) -> Iterator[Self]:
        """Let nobody else deploy here; wait, and say so, while somebody does.

        What is done here meanwhile is done through the target that this gives.
        """
        with contextlib.ExitStack() as stack:
            try:
                locked = stack.enter_context(self.records.lock(wait=False))
            except TargetLocked:
                logger.info("another process deploys to %s: waiting for it", self.name)
                locked = stack.enter_context(self.records.lock(wait=True))
            yield replace(self, locked=locked)

    def by(self, deploy_args: Mapping[str, Any]) -> Self:
        """Return the same target by other arguments, as they were written down.

        Raises:
            BadInput: they are not understood, or would have its records lie elsewhere.
        """
        other = replace(self, args=read_deploy_args(self.name, deploy_args))
        place = other.target.records().place
        if place != self.records.place:
            raise BadInput(
                f"deploying to '{self.name}'",
                f"what serves there is known by {self.records.place}, and by its arguments it "
                f"would be by {place}",
                "give the other one a name of its own",
            )
        return other

    # The state

    @property
    def changed_at(self) -> float:
        """Unix time at which the state was last written."""
        return self.records.read(STATE).changed_at

    def load_state(self) -> TargetState[Any]:
        """Return what is known of the target. Raises Unavailable when the record is damaged."""
        return self._parse(self.records.read(STATE).content)

    def load_state_if_idle(self) -> TargetState[Any] | None:
        """Return the state, read while nobody deploys here; None while somebody does."""
        while True:
            content = self.records.read(STATE).content
            if self.records.is_locked():
                return None
            # Else somebody had the lock, and wrote, between the two looks.
            if self.records.read(STATE).content == content:
                return self._parse(content)

    def change_state(self, **changes: Any) -> TargetState[Any]:
        """Write the state down with some fields replaced, and return it."""

        state: TargetState[Any] = TargetState()

        def changed(content: bytes) -> bytes:
            nonlocal state
            state = self._parse(content).model_copy(update=changes)
            return state_document(state)

        self.records.change(STATE, changed)
        return state

    def _parse(self, content: bytes) -> TargetState[Any]:
        return parse_state(content, self.target.revision_model, self.records.place)

    # The arguments in force

    def adopt(self, since: float) -> None:
        """Write down that the arguments it was opened with are in force, unless later ones are.

        Args:
            since: Unix time at which they were given.
        """
        self._write_arguments(self._document, since, over_later=False)

    def put_in_force(self) -> float:
        """Have the arguments it was opened with hold from now on, also while a rollout goes on.

        Returns:
            The Unix time since which they hold.

        Raises:
            BadInput: the address can't be had so; what was in force before still is.
        """
        self.target.check()
        before = self.load_state()
        # Later than those before, whatever has become of the clock.
        since = max(time.time(), math.nextafter(before.deploy_args_since, math.inf))
        self.adopt(since)
        try:
            if traffic_shares(before):
                self.route()
        except BadInput:
            self._write_arguments(before.deploy_args, before.deploy_args_since, over_later=True)
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
            previous_releases=previous_releases(
                state, rollout, self.workspace.settings.history_kept
            ),
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
            LockLost: another deployer has the target by now. Nothing is done.
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
        except LockLost:
            raise  # whoever has the lock now says where traffic goes
        except Unavailable:
            self._go_back_unwritten(rollout, state.model_copy(update=changes), figures)
            raise
        self.route()
        self.stop_drained()

    def pause(self, why: str) -> None:
        """Pause rollouts here until a person decides."""
        logger.warning(
            "%s is paused: %s; `weighbridge promote --now`, `abort` or `resume`", self.name, why
        )
        operator_commands.issue(self.records, "pause", "")
        self.change_state(reason=why)

    def route(self) -> None:
        """Have the gateway share out new requests as the state says, by the arguments in force."""
        # State and arguments are read inside: whoever comes last goes by the newest.
        with self.records.turn():
            routed = None
            while (content := self.records.read(STATE).content) != routed:
                state, routed = self._parse(content), content
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

    def _write_arguments(
        self, deploy_args: Mapping[str, Any], since: float, *, over_later: bool
    ) -> None:
        changes = {"deploy_args": deploy_args, "deploy_args_since": since}

        def changed(content: bytes) -> bytes | None:
            state = self._parse(content)
            is_known = changes == {name: getattr(state, name) for name in changes}
            if is_known or (since < state.deploy_args_since and not over_later):
                return None
            return state_document(state.model_copy(update=changes))

        # The home's, so that it finds the target's again, and knows of it while MLflow is away; of
        # a target of this machine they are the same.
        places = (self.records, home_records(self.name, self.home))
        for records in {one.place: one for one in places}.values():
            # Nearly always there is nothing to do, and then no lock to wait for.
            if changed(records.read(STATE).content) is not None:
                records.change(STATE, changed)

    def _target_in_force(self, state: TargetState[Any]) -> Target[Any, Any]:
        """Return the target by the arguments in force: a rollout may have begun by earlier ones."""
        if not state.deploy_args or state.deploy_args == self._document:
            target = self.target
        else:
            target = self.by(state.deploy_args).target
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
        with self.records.turn():
            self._target_in_force(self.load_state()).route(traffic_shares(back))


def open_target(name: str, workspace: Workspace) -> ManagedTarget | None:
    """Return a target with the arguments in force; None where nothing was ever deployed there."""
    known = read_state(home_records(name, workspace.settings.home), Revision)
    if not known.deploy_args:
        return None
    args = read_deploy_args(name, known.deploy_args, known.written_by)
    return ManagedTarget(name, args, workspace)
