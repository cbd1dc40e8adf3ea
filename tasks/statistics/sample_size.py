"""How many rows a claim takes, and what a number of rows can show."""

import math
from statistics import NormalDist

POWER = 0.8
"""Chance that what is true is also shown."""


def quantiles(alpha: float = 0.05, power: float = POWER) -> float:
    """Return the sum of the quantiles of level and power: 1.96 + 0.84."""
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)


def rows_for(effect: float, spread: float, alpha: float = 0.05, power: float = POWER) -> int:
    """Return the rows that a paired difference takes, given the spread of the rows' differences.

    `effect` is how far the true difference lies from the one that is to be excluded: the margin,
    where two are equal. J. Connor, Sample size for testing differences in proportions for the
    paired-sample design, Biometrics 43 (1987), 207-211, without its small terms.
    """
    return max(1, math.ceil((quantiles(alpha, power) * spread / effect) ** 2))


def rows_for_discordance(
    margin: float, discordance: float, alpha: float = 0.05, power: float = POWER
) -> int:
    """Return the rows that show "not worse by `margin`" of two models equally often right.

    `discordance` is the share of rows that one of them alone answers rightly.
    """
    return rows_for(margin, math.sqrt(discordance), alpha, power)


def smallest_margin(rows: int, spread: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest margin that so many rows can show, the inverse of `rows_for`."""
    return quantiles(alpha, power) * spread / math.sqrt(rows)


def smallest_margin_at(
    rows: int, discordance: float, alpha: float = 0.05, power: float = POWER
) -> float:
    """Return the smallest margin that so many right and wrong answers can show."""
    return smallest_margin(rows, math.sqrt(discordance), alpha, power)
