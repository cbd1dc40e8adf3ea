"""Who is to blame: each package that breaks a contract alone, and where none does, the fewest that
do together.
"""

from collections.abc import Mapping, Sequence

import pytest

from weighbridge.compat.attribution import BrokenContract, attribute

MANY = [f"p{number}" for number in range(40)]


class World:
    """Contracts that break whenever all packages of one of their sets are updated."""

    def __init__(self, **breakers: Sequence[set[str]]) -> None:
        self.breakers = breakers
        self.trials: list[tuple[str, ...]] = []

    def trial(self, names: Sequence[str]) -> Mapping[str, str]:
        self.trials.append(tuple(names))
        return {
            contract: f"{contract} broken by {sorted(guilty)}"
            for contract, sets in self.breakers.items()
            for guilty in [next((each for each in sets if each <= set(names)), None)]
            if guilty is not None
        }

    def blame(self, direct: Sequence[str], every: Sequence[str]) -> list[BrokenContract]:
        broken = dict.fromkeys(self.breakers, "with everything at its newest")
        return attribute(broken, direct, every, self.trial)


def test_two_packages_that_break_one_contract_are_both_named() -> None:
    world = World(flow=[{"a"}], schedule=[{"a"}, {"b"}])
    found = world.blame(["a", "b", "c"], ["a", "b", "c"])
    assert [(blame.contract, blame.packages) for blame in found] == [
        ("flow", ("a",)),
        ("schedule", ("a",)),
        ("schedule", ("b",)),
    ]
    assert found[2].error == "schedule broken by ['b']"


def test_an_indirect_package_is_found_among_many_in_few_trials() -> None:
    world = World(flow=[{"p27"}])
    assert world.blame(["a", "b"], ["a", "b", *MANY]) == [
        BrokenContract("flow", ("p27",), "flow broken by ['p27']")
    ]
    assert len(world.trials) < 20


@pytest.mark.parametrize("pair", [("p0", "p39"), ("p3", "p4"), ("a", "p20")])
def test_packages_that_break_only_together_are_named_together(pair: tuple[str, str]) -> None:
    world = World(flow=[set(pair)])
    (found,) = world.blame(["a"], ["a", *MANY])
    assert set(found.packages) == set(pair)


def test_what_nobody_can_be_blamed_for_keeps_its_error() -> None:
    world = World(flow=[{"unknown"}])
    assert world.blame(["a"], ["a", "b"]) == [
        BrokenContract("flow", (), "with everything at its newest")
    ]


def test_nothing_is_tried_twice() -> None:
    world = World(flow=[{"p3", "p30"}])
    world.blame([], MANY)
    assert len(world.trials) == len(set(world.trials))
