"""A recorded grid in place of engines: it answers a search with the record's times, speeds and
noise, so that searches are compared for nothing.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from weighbridge.core.errors import BadInput
from weighbridge.tasks.search.space import CANDIDATE, Setting, Space, key_of
from weighbridge.tasks.search.visits import GridPoint, Question, Visit, read_grid

BETWEEN: Final = 0.5
"""Share of the variance that the rounds on one start of an engine have in common.

A cautious assumption: 24 starts of the demo's model on two busy cores showed 0.1 at most, but noise
within a start was 0.3 to 0.6 there, and would have hidden more.
"""
SHRUNK: Final = 3
"""Rounds' worth of the grid's common noise that each point's own is mixed with."""


class Replay:
    """Measures by looking up."""

    def __init__(self, grid: Sequence[GridPoint], seed: int = 0) -> None:
        points = tried_of(grid)
        self.points = {key_of(point.setting): point for point in points}
        self.seed = seed
        self._noise = _noise(points)
        self._number = {key: number for number, key in enumerate(self.points)}

    def __call__(self, question: Question) -> Visit:
        """Return what the record has of the setting, with new noise.

        The noise goes by seed, setting and number of the question alone: a search that was killed
        meets the same.

        Raises:
            BadInput: the grid does not have the setting.
        """
        key = key_of(question.setting)
        if key not in self.points:
            raise BadInput("replaying a recorded grid", f"it does not have {key}")
        point = self.points[key]
        if point.failure is not None:
            return Visit(
                setting=point.setting, start_seconds=point.start_seconds, failure=point.failure
            )
        generator = np.random.default_rng([self.seed, self._number[key], question.number])
        common, *own = generator.normal(size=1 + question.rounds)
        noise = self._noise[key]
        logs = [
            self.truth(point.setting)
            + noise * (math.sqrt(BETWEEN) * common + math.sqrt(1 - BETWEEN) * one)
            for one in own
        ]
        return Visit(
            setting=point.setting,
            start_seconds=point.start_seconds,
            run_seconds=point.run_seconds * question.rounds,
            repeats=[[math.exp(log)] for log in logs],
            figure=point.figure,
        )

    def truth(self, setting: Setting) -> float:
        """Return the log of a setting's speed; minus infinity where it does not work."""
        logs = self.points[key_of(setting)].log_speeds()
        return sum(logs) / len(logs) if logs else -math.inf

    def noise(self, setting: Setting) -> float:
        """Return the standard deviation of the log of one round of a setting."""
        return self._noise[key_of(setting)]

    def seconds(self) -> float:
        """Return what one round of every setting takes, failures included."""
        return sum(point.seconds for point in self.points.values())


def tried_of(grid: Sequence[GridPoint]) -> list[GridPoint]:
    """Return what a search would try: not what free checks refuse.

    Raises:
        BadInput: they refuse all.
    """
    tried = [one for one in grid if one.failure is None or one.failure.phase != "check"]
    if not tried:
        raise BadInput(
            "replaying a recorded grid", f"all of its {len(grid)} settings were refused unseen"
        )
    return tried


def replay_of(path: Path, seed: int = 0) -> tuple[Space, Replay]:
    """Return the space of a recorded grid, and what answers in it.

    Its first point stands for the engine's defaults; where it holds several candidates, each has
    its first.
    """
    points = tried_of(read_grid(path))
    first: dict[str, int] = {}
    for number, point in enumerate(points):
        first.setdefault(key_of(point.setting.get(CANDIDATE)), number)
    space = Space(tuple(point.setting for point in points), tuple(first.values()))
    return space, Replay(points, seed)


def _noise(points: Sequence[GridPoint]) -> dict[str, float]:
    """Return the noise of one round at every point: as filled in, else of its own rounds and those
    of the others.
    """
    spreads = {key_of(point.setting): _spread(point) for point in points if not point.filled}
    count = sum(freedom for _, freedom in spreads.values())
    common = sum(squares for squares, _ in spreads.values()) / count if count else 0.1**2
    return {
        key_of(point.setting): point.noise
        if point.noise is not None
        else _mixed(*spreads[key_of(point.setting)], common)
        for point in points
    }


def _mixed(squares: float, freedom: int, common: float) -> float:
    return math.sqrt((SHRUNK * common + squares) / (SHRUNK + freedom))


def _spread(point: GridPoint) -> tuple[float, int]:
    """Return the sum of squares about the mean of the rounds' logs, and its degrees of freedom."""
    logs = point.log_speeds()
    mean = sum(logs) / len(logs) if logs else 0.0
    return sum((log - mean) ** 2 for log in logs), max(0, len(logs) - 1)
