"""A walk of promotions, commands, faults and restarts.

Whatever happened, the actual state becomes the desired one.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.rollout.faults import KINDS, again, check_quiet, heal, memory_folder, strike, watched
from tests.stand_ins.target import Fault, Version
from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import operator_commands, target_operations
from weighbridge.rollout.interrupted_rollouts import recover
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.reconcile import _AliasWatch
from weighbridge.rollout.rollout import Rollout

VERSIONS = st.sampled_from("1234")
NUMBERS = st.integers(0, 40)
FAULTS = st.none() | st.builds(Fault, NUMBERS, st.sampled_from(KINDS))
BREAKS = st.sampled_from(
    [
        {},
        {"starts": False},
        {"answers": False},
        {"garbage": True},
        {"error_share": 0.8},
        {"dies_after": 2},
    ]
)
MEDDLING = st.sampled_from(
    ["abort", "now", "pause", "alias 1", "alias 3", "no alias", "mlflow down", "errors"]
)
RELIEF = st.sampled_from(["resume", "abort", "now"])
WALKS = settings(
    derandomize=True,
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Walk(RuleBasedStateMachine):
    """One target, its registry and everybody who meddles with them."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        workspace = Workspace(Settings(home=home))
        policy = {"questions": 4, "start_deadline": 0.05, "drain_seconds": 30, "error_rate": 1e-5}
        # What takes hundreds of answers is not what is walked through.
        policy |= {"exclude_harm": "never"}
        self.shop = self._stack.enter_context(watched(workspace, patch, **policy))
        self.world, self.registry = self.shop.world, self.shop.registry
        self.brought_down = False
        self._relief: operator_commands.Command = "resume"
        patch.setattr("weighbridge.rollout.reconcile.ALIAS_POLL", 0.0)
        patch.setattr(_AliasWatch, "superseded", self._unwatched(_AliasWatch.superseded))
        patch.setattr(Rollout, "_pause", staticmethod(self._time_passes))

    # What a process does

    @rule(version=VERSIONS, force=st.booleans())
    def promote(self, version: str, force: bool) -> None:
        self._redeploy(version, None, {}, force)

    @rule(version=VERSIONS, number=NUMBERS, kind=st.sampled_from(KINDS))
    def promote_under_a_fault(self, version: str, number: int, kind: Any) -> None:
        self._redeploy(version, Fault(number, kind), {}, True)

    @rule(version=VERSIONS, meddling=st.dictionaries(NUMBERS, MEDDLING, max_size=3), relief=RELIEF)
    def promote_while_others_meddle(
        self, version: str, meddling: dict[int, str], relief: operator_commands.Command
    ) -> None:
        self._relief = relief
        self._redeploy(version, None, meddling, True)

    @rule(
        version=VERSIONS,
        number=NUMBERS,
        kind=st.sampled_from(KINDS),
        meddling=st.dictionaries(NUMBERS, MEDDLING),
        relief=RELIEF,
    )
    def promote_under_all_of_it(
        self,
        version: str,
        number: int,
        kind: Any,
        meddling: dict[int, str],
        relief: operator_commands.Command,
    ) -> None:
        self._relief = relief
        self._redeploy(version, Fault(number, kind), meddling, True)

    @rule(fault=FAULTS)
    def roll_back(self, fault: Fault | None) -> None:
        with contextlib.suppress(BadInput):
            self._redeploy(
                target_operations.rollback_version("shop", self.shop.workspace), fault, {}, False
            )

    @rule(fault=FAULTS)
    def reconcile(self, fault: Fault | None) -> None:
        self._redeploy(self.registry.alias, fault, {}, False)

    @rule(fault=FAULTS)
    def start_anew(self, fault: Fault | None) -> None:
        self._strike(fault, lambda: recover(self.shop.workspace))

    @rule(fault=FAULTS)
    def stop_drained(self, fault: Fault | None) -> None:
        if self._known():
            self._strike(fault, lambda: target_operations.stop_drained("shop", self.shop.workspace))

    # What somebody does, or happens

    @rule(command=st.sampled_from(["pause", "resume", "abort", "now"]))
    def give_command(self, command: operator_commands.Command) -> None:
        if self._known():
            target_operations.command("shop", command, self.shop.workspace)

    @rule(version=VERSIONS, how=BREAKS)
    def break_or_mend(self, version: str, how: dict[str, Any]) -> None:
        """One that serves, or that a rollout under way may have to go back to, only breaks as
        clients see it.
        """
        held = {
            name.partition(".")[0] for name in (*self.world.running, *self.world.routes)
        } | self._in_the_state()
        if version not in held or how.keys() <= {"garbage", "error_share"}:
            self.world.versions[version] = Version(**how)

    @rule(version=VERSIONS, peak=st.sampled_from([0, 6 << 30]))
    def measure(self, version: str, peak: int) -> None:
        """Of 5 GiB that are free: the old one is stopped first where 6 are needed."""
        self.world.free = 5 << 30
        self.registry.peak_memory[version] = peak

    @rule(
        unweighed=st.sets(VERSIONS, max_size=2),
        on_inconclusive=st.sampled_from(["rollback", "pause"]),
        down=st.booleans(),
        busy=st.booleans(),
    )
    def change(self, unweighed: set[str], on_inconclusive: str, down: bool, busy: bool) -> None:
        self.registry.unweighed = unweighed
        self.shop.policy["on_inconclusive"] = on_inconclusive
        self.registry.down, self.world.busy = down, busy

    @rule(ends=st.booleans())
    def long_answers(self, ends: bool) -> None:
        for name, (weight, _) in self.world.routes.items():
            if weight:
                self.world.in_flight[name] = 1
        if ends:
            self.world.in_flight.clear()

    @rule()
    def nothing_runs(self) -> None:
        """Power is lost, or somebody brings the platform down: nobody serves then."""
        before = list(self.world.violations)
        self.world.in_flight.clear()
        self.world.running.clear()
        self.world.routes.clear()
        self.world.violations[:] = before
        self.world.was_served, self.brought_down = False, True

    # What holds

    @invariant()
    def nobody_was_harmed(self) -> None:
        assert self.world.violations == []

    @invariant()
    def the_state_claims_what_runs(self) -> None:
        if not self._known() or self.brought_down:
            return
        state = self.shop.state
        swapping = state.rollout is not None and state.rollout.swap
        assert state.current is None or swapping or state.current.name in self.world.running

    def teardown(self) -> None:
        try:
            self._end_well()
        finally:
            self._stack.close()

    def _end_well(self) -> None:
        heal(self.shop)
        self.world.versions.clear()
        self.registry.unweighed.clear()
        self.registry.down = False
        if self._known():
            target_operations.command("shop", "resume", self.shop.workspace)
        self.registry.alias = self.registry.alias or "1"
        again(self.shop)
        check_quiet(self.shop, self.registry.alias)

    # Helpers

    def _redeploy(
        self, version: str, fault: Fault | None, meddling: dict[int, str], force: bool
    ) -> None:
        self.registry.alias = version
        self.world.acts = {number: self._act(what) for number, what in meddling.items()}
        self._strike(fault, lambda: self.shop.reconcile(force=force))
        self.world.acts = {}
        self.registry.down = (
            False  # a pause, and MLflow's absence, last for one attempt: else little would happen
        )
        self.give_command("resume")

    def _strike(self, fault: Fault | None, act: Callable[[], object]) -> None:
        strike(self.shop, fault, act)
        self.brought_down = self.brought_down and not self.world.running

    def _known(self) -> bool:
        return open_target("shop", self.shop.workspace) is not None

    def _in_the_state(self) -> set[str]:
        state = self.shop.state if self._known() else None
        rollout = state.rollout if state else None
        revisions = [state.current] if state else []
        revisions += [rollout.previous, rollout.next] if rollout else []
        return {one.release.version for one in revisions if one is not None}

    def _act(self, what: str) -> Callable[[], object]:
        return lambda: self._meddle(what)

    def _meddle(self, what: str) -> None:
        if what in ("abort", "now", "pause"):
            self.give_command(what)  # type: ignore[arg-type]
        elif what == "mlflow down":
            self.registry.down = True
        elif what == "errors":
            for name in self.world.running:
                self.world.version(name).error_share = 0.8
        else:
            self.registry.alias = what.removeprefix("alias ") if what != "no alias" else ""

    def _time_passes(self, seconds: float) -> None:
        """While a rollout waits: somebody sees that it is paused, and requests end."""
        self.world.in_flight.clear()
        if operator_commands.read(self.shop.managed.records).paused:
            self.give_command(self._relief)

    def _unwatched(
        self, superseded: Callable[[_AliasWatch], str | None]
    ) -> Callable[[_AliasWatch], str | None]:
        """How often it looks depends on the machine's speed: these looks are not numbered."""

        def look(watch: _AliasWatch) -> str | None:
            count, fault, self.world.fault = len(self.world.effects), self.world.fault, None
            try:
                return superseded(watch)
            finally:
                del self.world.effects[count:]
                self.world.fault = fault

        return look


def test_whatever_happens_the_actual_state_becomes_the_desired_one() -> None:
    walks = iter(range(1_000_000))
    with memory_folder() as folder:
        run_state_machine_as_test(lambda: Walk(folder / str(next(walks))), settings=WALKS)
