"""The rows of scores as arrays, and two scores paired by the ids of their rows."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.statistics.resampling import BLEU, EXPONENTIAL, RATIO, Figure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

ROUNDING = 1e-6
"""Share by which a figure of the rows may differ from the one that was kept."""


def figure_of(score: Score) -> Figure:
    """Return how a score's value comes of the sums over its rows."""
    return {"mean": RATIO, "exponential": EXPONENTIAL, "bleu": BLEU}[score.figure]


def summands(score: Score) -> "Numbers":
    """Return what each row adds to the sums that the score's value is a figure of."""
    import numpy as np

    if score.figure == "bleu":
        return np.asarray(score.statistics, dtype=float).reshape(-1, 10)
    values = np.asarray(score.per_example, dtype=float)
    if score.figure == "exponential":
        values = np.log(values)
    weights = np.asarray(score.weights, dtype=float) if score.weights else np.ones(len(values))
    return np.stack([values * weights, weights], axis=1)


def follows_from_rows(score: Score) -> bool:
    """Whether the score's value can be computed anew of any of its rows.

    It cannot where the metric exists for a whole corpus alone, nor of ratios and corpus figures in
    records of earlier releases.
    """
    rows = summands(score)
    if not len(rows) or not math.isfinite(score.value):
        return False
    value = float(figure_of(score).value(rows.sum(axis=0)))
    return math.isclose(value, score.value, rel_tol=ROUNDING, abs_tol=ROUNDING)


def is_right_or_wrong(score: Score) -> bool:
    """Whether every row is right or wrong."""
    return score.figure == "mean" and not score.weights and set(score.per_example) <= {0.0, 1.0}


@dataclass(frozen=True)
class Pairs:
    """The rows that two scores have in common."""

    first: list[int]
    """Places in the first score, in its order."""
    second: list[int]
    """Places of the same rows in the second."""
    only_first: list[str]
    """Ids of rows that the second lacks."""
    only_second: list[str]


def pair(first: Score, second: Score) -> Pairs:
    """Pair the rows of two scores by id."""
    if first.ids == second.ids:
        everywhere = list(range(len(first.ids)))
        return Pairs(everywhere, everywhere, [], [])
    places = {name: place for place, name in enumerate(second.ids)}
    both = [(place, places[name]) for place, name in enumerate(first.ids) if name in places]
    known = set(first.ids)
    return Pairs(
        [mine for mine, _ in both],
        [theirs for _, theirs in both],
        [name for name in first.ids if name not in places],
        [name for name in second.ids if name not in known],
    )
