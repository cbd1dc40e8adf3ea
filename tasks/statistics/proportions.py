"""Tests and intervals for right and wrong answers: one proportion, and two on the same rows."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def normal_quantile(alpha: float) -> float:
    """Return the two-sided quantile of the standard normal distribution: 1.96 for 0.05."""
    return NormalDist().inv_cdf(1 - alpha / 2)


def student_quantile(alpha: float, freedom: int) -> float:
    """Return the two-sided quantile of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - alpha / 2))


def wilson(successes: float, trials: float, z: float) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927), 209-212. Unlike the normal interval it stays within [0, 1] and is not empty at 0 of n
    and n of n.
    """
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At 0 and n the exact ends are 0 and 1; floating point may overshoot them by one unit.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + half) / scale)
    return low, high


def mcnemar_mid_p(gained: int, lost: int) -> float:
    """Return the two-sided mid-p value of McNemar's test, given the rows that differ either way.

    M. W. Fagerland, S. Lydersen, P. Laake, The McNemar test for binary matched-pairs data: mid-p
    and asymptotic are better than exact conditional, BMC Medical Research Methodology 13:91 (2013).
    """
    return sign_flip_mid_p([1] * gained + [-1] * lost)


def sign_flip_mid_p(sums: Sequence[int]) -> float:
    """Return the two-sided mid-p value of "each cluster's sum could as well have its other sign".

    R. A. Fisher's randomisation test of paired differences (The Design of Experiments, 1935,
    section 21), exact: the distribution of the total over all signs is built by convolution. Where
    every cluster is one row it is McNemar's mid-p test.
    """
    import numpy as np

    sizes = [abs(number) for number in sums if number]
    chances = np.ones(1)
    for size, times in Counter(sizes).items():
        # `times` signs of equal size: a binomial, on every (2 * size)-th place of the total.
        spaced = np.zeros(2 * size * times + 1)
        spaced[:: 2 * size] = _binomial_half(times)
        chances = np.convolve(chances, spaced)
    middle = sum(sizes)
    distance = abs(np.arange(-middle, middle + 1))
    seen = abs(sum(sums))
    beyond, at = chances[distance > seen].sum(), chances[distance == seen].sum()
    return float(min(1.0, beyond + at / 2))


def _binomial_half(trials: int) -> "NDArray[np.float64]":
    import numpy as np
    from scipy.special import gammaln

    places = np.arange(trials + 1)
    logarithms = gammaln(trials + 1) - gammaln(places + 1) - gammaln(trials - places + 1)
    chances: NDArray[np.float64] = np.exp(logarithms - trials * math.log(2))
    return chances


def tango(gained: float, lost: float, rows: float, z: float) -> tuple[float, float]:
    """Return Tango's score interval of the difference of two proportions on the same rows.

    `gained` rows are right in the second alone, `lost` in the first alone; the difference is
    (gained - lost) / rows. T. Tango, Equivalence test and confidence interval for the difference
    in proportions for the paired-sample design, Statistics in Medicine 17 (1998), 891-908;
    recommended in M. W. Fagerland, S. Lydersen, P. Laake, Recommended tests and confidence
    intervals for paired binomial proportions, Statistics in Medicine 33 (2014), 2850-2875.
    Where no row differs its ends are z²/(rows + z²) away, and not 0.
    """
    estimate = (gained - lost) / rows
    low = _crossing(lambda end: tango_score(gained, lost, rows, end) - z, -1.0, estimate)
    high = _crossing(lambda end: tango_score(gained, lost, rows, end) + z, estimate, 1.0)
    return low, high


def tango_score(gained: float, lost: float, rows: float, difference: float) -> float:
    """Return Tango's statistic for a supposed difference, standard normal where it is the true one.

    It falls as the supposed difference grows.
    """
    # Maximum likelihood of the chance that a row is lost, given the difference.
    linear = -gained - lost + (2 * rows - gained + lost) * difference
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * rows * constant))
    losing = (root - linear) / (4 * rows)
    variance = rows * (2 * losing + difference * (1 - difference))
    distance = gained - lost - rows * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _crossing(function: Callable[[float], float], left: float, right: float) -> float:
    """Return where a falling function crosses 0; an end where it doesn't."""
    from scipy.optimize import brentq

    if function(left) <= 0:
        return left
    if function(right) >= 0:
        return right
    return float(brentq(function, left, right, xtol=1e-12))
