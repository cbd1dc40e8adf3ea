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
    where two are equal. Of right and wrong answers the spread is the root of the discordance, the
    share of rows that one of the two alone answers rightly. J. Connor, Sample size for testing
    differences in proportions for the paired-sample design, Biometrics 43 (1987), 207-211, without
    its small terms.
    """
    return max(1, math.ceil((quantiles(alpha, power) * spread / effect) ** 2))


def smallest_margin(rows: int, spread: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest margin that so many rows can show, the inverse of `rows_for`."""
    return quantiles(alpha, power) * spread / math.sqrt(rows)


def smallest_gain(
    rows: int, discordance: float, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Return the smallest gain in right answers that so many rows show by McNemar's mid-p test.

    None where not even a gain of the whole discordance, nothing lost, is shown that often.
    """
    from scipy.optimize import brentq

    def excess(gain: float) -> float:
        return chance_of_gain(rows, discordance, gain, alpha) - power

    if excess(discordance) < 0:
        return None
    return float(brentq(excess, 0.0, discordance, xtol=1e-5))


def chance_of_gain(rows: int, discordance: float, gain: float, alpha: float = 0.05) -> float:
    """Return how often a gain in right answers is shown: exactly, over all numbers of rows that
    differ.
    """
    import numpy as np
    from scipy.stats import binom

    differing = np.arange(rows + 1)
    chances = binom.pmf(differing, rows, discordance)
    differing, chances = differing[chances > 1e-9], chances[chances > 1e-9]
    start, fewest = binom.isf(alpha / 2, differing, 0.5), differing + 1.0
    for gained in (start + 2, start + 1, start, start - 1):
        mid_p = binom.sf(gained, differing, 0.5) + binom.pmf(gained, differing, 0.5) / 2
        fewest = np.where((mid_p <= alpha / 2) & (gained <= differing), gained, fewest)
    shown = binom.sf(fewest - 1, differing, (discordance + gain) / (2 * discordance))
    return float(chances @ shown)
