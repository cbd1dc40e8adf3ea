"""How many rows a claim takes, and what a number of rows can show."""

import math
from functools import lru_cache
from statistics import NormalDist

POWER = 0.8
"""Chance that what is true is also shown."""
_MANY_DIFFER = 30
"""Rows that differ from which on the normal approximation errs by less than 3 %."""


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
    estimate = _gain_of_many(rows, discordance, alpha, power)
    if rows * discordance > _MANY_DIFFER:
        return estimate if estimate <= discordance else None
    high = min(1.1 * estimate, discordance)
    if chance_of_gain(rows, discordance, high, alpha) < power:
        return None
    low = 0.8 * high
    while high - low > 0.002 * discordance:
        middle = (low + high) / 2
        if chance_of_gain(rows, discordance, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def _gain_of_many(rows: int, discordance: float, alpha: float, power: float) -> float:
    """Return the same by the normal approximation: Connor's formula, solved for the gain."""
    certain, likely = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    squares = rows + likely**2
    # Of so few rows that there is no root, the sum is the larger one.
    root = max(0.0, certain**2 * rows - squares * (certain**2 - likely**2))
    return math.sqrt(discordance) * (certain * math.sqrt(rows) + math.sqrt(root)) / squares


# Without SciPy, which a plan must not wait for.
def chance_of_gain(rows: int, discordance: float, gain: float, alpha: float = 0.05) -> float:
    """Return how often a gain in right answers is shown: over all numbers of rows that differ, but
    those that come in less than a case of a million.
    """
    mean, spread = rows * discordance, math.sqrt(rows * discordance * (1 - discordance))
    fewest, most = math.floor(mean - 5 * spread) - 3, math.ceil(mean + 5 * spread) + 3
    share = (discordance + gain) / (2 * discordance)
    return math.fsum(
        _chance(differing, rows, discordance)
        * _at_least(_fewest_gained(differing, alpha), differing, share)
        for differing in range(max(fewest, 0), min(most, rows) + 1)
    )


@lru_cache(maxsize=4096)
def _fewest_gained(differing: int, alpha: float) -> int:
    """Return how many of the rows that differ must be gained for a mid-p of `alpha`, two-sided;
    more than there are where none would do.
    """
    gained = differing + 1
    above = 0.0
    while gained > 0:
        chance = _chance(gained - 1, differing, 0.5)
        if above + chance / 2 > alpha / 2:
            return gained
        above, gained = above + chance, gained - 1
    return gained


def _at_least(gained: int, differing: int, share: float) -> float:
    """Return the chance that a binomial variable reaches a number."""
    if gained > differing or share == 1:
        return float(gained <= differing)
    chance, total = _chance(gained, differing, share), 0.0
    for number in range(gained, differing + 1):
        total += chance
        chance *= (differing - number) / (number + 1) * share / (1 - share)
    return total


def _chance(number: int, trials: int, share: float) -> float:
    """Return the chance that a binomial variable has a value."""
    if share == 1:
        return float(number == trials)
    ways = math.lgamma(trials + 1) - math.lgamma(number + 1) - math.lgamma(trials - number + 1)
    return math.exp(ways + number * math.log(share) + (trials - number) * math.log1p(-share))
