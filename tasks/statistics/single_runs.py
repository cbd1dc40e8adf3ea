"""How much single runs of one candidate differ, and who may be the best by them.

Before anything was repeated only the usual spread is known. Repeats tell more, in two ways: by what
differs within a block, and by how far the single runs before were from what their candidates turned
out to be. What the machine did while candidates were measured one after another is in the second
alone: it bears on who was taken for one of the best as noise does, so the larger of the two counts.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

from weighbridge.tasks.statistics.repeats import USUAL_SPREAD

USUAL_FREEDOM: Final = 4
"""Degrees of freedom for which the usual spread counts beside those of what was measured."""


def luck(candidates: int, spread: float = USUAL_SPREAD, alpha: float = 0.05) -> float:
    """Return by how much, a share, the truly best of so many candidates may be behind the best
    single run by chance: by more in `alpha` of cases at most.

    S. S. Gupta, On some multiple decision (selection and ranking) rules, Technometrics 7 (1965),
    225-245, with Bonferroni's bound in place of the integral: 15 % for two, 18 % for three where
    runs spread as usual.
    """
    score = NormalDist().inv_cdf(1 - alpha / max(candidates - 1, 1))
    return 1 - math.exp(-score * math.sqrt(2) * spread)


def run_spread(repeats: Sequence[Sequence[float]], singles: Sequence[tuple[float, int]]) -> float:
    """Return the standard deviation of the log of a single run; the usual one where nothing was
    repeated, or a run has no figure.

    Args:
        repeats: by label, the figure of every block.
        singles: figures of single runs before, each with the number of its label.
    """
    every = [*(figure for runs in repeats for figure in runs), *(figure for figure, _ in singles)]
    if not all(repeats) or not all(math.isfinite(figure) and figure > 0 for figure in every):
        return USUAL_SPREAD
    logs = [[math.log(figure) for figure in runs] for runs in repeats]
    means = [math.fsum(runs) / len(runs) for runs in logs]
    # A block that was slow for all is no noise: differences from each label's mean, about the mean
    # of their block.
    blocks = [
        [log - mean for log, mean in zip(block, means, strict=True)]
        for block in zip(*logs, strict=True)
    ]
    shifts = [math.log(figure) - means[label] for figure, label in singles]
    return max(
        _with_the_usual(sum(map(_squares, blocks)), (len(blocks) - 1) * (len(means) - 1)),
        _with_the_usual(_squares(shifts), max(0, len(shifts) - 1)),
    )


def _with_the_usual(squares: float, freedom: int) -> float:
    usual = USUAL_FREEDOM * USUAL_SPREAD**2
    return math.sqrt((usual + squares) / (USUAL_FREEDOM + freedom))


def _squares(values: Sequence[float]) -> float:
    """Return the sum of squares about the mean; 0 of none."""
    mean = math.fsum(values) / max(1, len(values))
    return math.fsum((value - mean) ** 2 for value in values)
