"""A fault at any effect of a rollout: afterwards the desired version serves, or where that is bad,
the one before.
"""

from collections.abc import Callable, Iterator
from typing import get_args, get_type_hints

import pytest

from tests.rollout.faults import (
    Start,
    again,
    bad,
    check_quiet,
    good,
    memory_folder,
    next_process,
    strike,
    swap,
    watched,
)
from tests.rollout.rollouts import Machine
from tests.stand_ins.target import Fault, Version
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import target_operations
from weighbridge.rollout.interrupted_rollouts import recover
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.state import home_records, read_state
from weighbridge.serving.targets.base import Revision

Kind = get_type_hints(Fault)["kind"]
KINDS = get_args(Kind)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    # What takes hundreds of answers is not what a fault happens to.
    policy = {"questions": 4, "exclude_harm": "never"}
    with (
        memory_folder() as folder,
        watched(Workspace(Settings(home=folder / "home")), monkeypatch, **policy) as shop,
    ):
        yield shop


def _bad_swap(shop: Machine) -> str:
    swap(shop)
    shop.world.versions["2"] = Version(garbage=True)
    return "1"


def _long_answers(shop: Machine) -> str:
    shop.policy["drain_seconds"] = 30
    shop.promote("1")
    shop.world.in_flight["1"] = 1
    return "2"


def _first(shop: Machine) -> str:
    return "2"


SCENARIOS = {
    "good": good,
    "bad": bad,
    "swap": swap,
    "bad swap": _bad_swap,
    "long answers": _long_answers,
    "first": _first,
}
scenarios = pytest.mark.parametrize("prepare", SCENARIOS.values(), ids=SCENARIOS)


@scenarios
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_effect_leaves_nothing_half(
    shop: Machine, prepare: Callable[[Machine], str], kind: Kind
) -> None:
    serves = prepare(shop)
    start = Start.of(shop)
    for number in range(_effects(shop, start)):
        start.put(shop)
        strike(shop, Fault(number, kind), lambda: shop.promote("2"))
        _go_on(shop, kind)
        _check(shop, serves, f"{kind} at {number}")


@scenarios
def test_a_second_crash_while_the_first_is_resolved_leaves_nothing_half(
    shop: Machine, prepare: Callable[[Machine], str]
) -> None:
    serves = prepare(shop)
    start = Start.of(shop)
    for number in range(_effects(shop, start)):
        start.put(shop)
        strike(shop, Fault(number, "crash after"), lambda: shop.promote("2"))
        strike(shop, Fault(number * 7 % 12, "crash after"), lambda: next_process(shop))
        next_process(shop)
        _check(shop, serves, f"crash after {number}, then after {number * 7 % 12}")


def _effects(shop: Machine, start: Start) -> int:
    start.put(shop)
    shop.promote("2")
    count = len(shop.world.effects)
    assert count > 10
    return count


def _go_on(shop: Machine, kind: Kind) -> None:
    """A process that died is followed by another one; one that was lied to goes on by itself."""
    if kind == "crash before" and open_target("shop", shop.workspace) is not None:
        target_operations.stop_drained(
            "shop", shop.workspace
        )  # whoever waits for a drain does not recover first
    if kind.startswith("crash"):
        recover(shop.workspace)
        _check_recovered(shop)
    again(shop)


def _check_recovered(shop: Machine) -> None:
    """Without MLflow, and without another attempt: only what serves, and what still has requests,
    is left.
    """
    state = read_state(home_records("shop", shop.workspace.settings.home), Revision)
    assert state.rollout is None
    serves = {state.current.name: (100, False)} if state.current else {}
    drains = {name: (0, True) for name in shop.world.in_flight if name not in serves}
    assert shop.world.routes == {**serves, **drains}
    assert set(shop.world.running) == shop.world.routes.keys()


def _check(shop: Machine, serves: str, where: str) -> None:
    __tracebackhide__ = True
    try:
        check_quiet(shop, serves)
        if serves == "1":
            assert shop.state.last_failure is not None
            assert (shop.state.last_failure.release.version, shop.state.desired_version) == (
                "2",
                "2",
            )
    except AssertionError as exc:
        exc.add_note(f"{where}; the record: {shop.state}; the ledger: {shop.registry.ledger}")
        raise
