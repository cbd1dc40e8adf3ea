"""What benchmarks share: sides that take turns, medians with their spread, a table, and one line of
JSON at the end.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


def alternate(sides: Sequence[str], turn: Callable[[str], T], rounds: int) -> dict[str, list[T]]:
    """Return `rounds` turns of every side, taken in an order that is reversed each round, so that
    no side always comes first.

    Standard error says whose turn it is: a benchmark takes minutes.
    """
    results: dict[str, list[T]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            print(f"round {number + 1} of {rounds}: {side}", file=sys.stderr, flush=True)
            results[side].append(turn(side))
    return results


@dataclass
class Figures:
    """What one benchmark has measured."""

    name: str
    values: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Lowest and highest of the turns."""
    goals: dict[str, dict[str, float]] = field(default_factory=dict)
    _turns: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(
        self,
        key: str,
        value: float | Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add a figure, or the turns whose median is the figure."""
        turns = [value] if isinstance(value, int | float) else list(value)
        self.values[key] = statistics.median(turns)
        self.spreads[key] = (min(turns), max(turns))
        bounds = {"at_least": at_least, "at_most": at_most}
        if goal := {kind: bound for kind, bound in bounds.items() if bound is not None}:
            self.goals[key] = goal

    def add_many(self, key: str, turns: Mapping[str, Sequence[float]]) -> None:
        """Add one figure per side, as `<key>_<side>`."""
        self._turns[key] = {side: list(values) for side, values in turns.items()}
        for side, values in turns.items():
            self.add(f"{key}_{side}", values)

    def ratio(
        self,
        key: str,
        side: str,
        to: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        """Add the median over the rounds of one side's turn divided by the other's, of figures
        added by `add_many`.
        """
        turns = self._turns[key]
        # Round by round: both sides of one meet the same machine, which other rounds may not.
        ratios = [
            value / other if other else 0.0
            for value, other in zip(turns[side], turns[to], strict=True)
        ]
        self.add(f"{key}_{side}_to_{to}", ratios, at_least=at_least, at_most=at_most)

    def misses(self) -> list[str]:
        """Return the figures that do not reach their goal."""
        return [
            key
            for key, goal in self.goals.items()
            if self.values[key] < goal.get("at_least", float("-inf"))
            or self.values[key] > goal.get("at_most", float("inf"))
        ]


def report(figures: Figures) -> None:
    """Print the table, what is missed, and a last line that programs read."""
    width = max(len(key) for key in figures.values)
    print(f"{'figure':{width}}  {'median':>10}  {'lowest':>10}  {'highest':>10}  goal")
    missed = figures.misses()
    for key, value in figures.values.items():
        low, high = figures.spreads[key]
        goal = ", ".join(
            f"{kind.replace('_', ' ')} {bound:g}"
            for kind, bound in figures.goals.get(key, {}).items()
        )
        verdict = "  MISSED" if key in missed else ""
        print(f"{key:{width}}  {value:10.4g}  {low:10.4g}  {high:10.4g}  {goal}{verdict}")
    rounded = {key: round(value, 4) for key, value in figures.values.items()}
    print(
        json.dumps(
            {
                "benchmark": figures.name,
                "figures": rounded,
                "goals": figures.goals,
                "holds": not missed,
            }
        )
    )
