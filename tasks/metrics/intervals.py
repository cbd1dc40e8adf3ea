"""95 % confidence intervals of a score."""

import math

from weighbridge.tasks.metrics.base import Score

Z = 1.959963984540054
"""The 0.975 quantile of the standard normal distribution."""
RESAMPLES = 2000
# Any fixed number: the same scores shall have the same interval in every run.
SEED = 20240229


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22
    (1927), 209-212. Unlike the normal interval it stays within [0, 1] and is not empty at 0 of n
    and n of n.
    """
    share = successes / trials
    centre = share + Z * Z / (2 * trials)
    half = Z * math.sqrt(share * (1 - share) / trials + Z * Z / (4 * trials * trials))
    scale = 1 + Z * Z / trials
    # At 0 and n the exact ends are 0 and 1; floating point may overshoot them by one unit.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == trials else min(1.0, (centre + half) / scale)
    return low, high


def bootstrap(values: list[float], weights: list[float] | None = None) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the (weighted) mean over rows, with a fixed seed.

    B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    import numpy as np

    rows = len(values)
    weight = np.ones(rows) if weights is None else np.asarray(weights, dtype=float)
    total = np.asarray(values, dtype=float) * weight
    generator = np.random.default_rng(SEED)
    means = []
    # One at a time: all together would hold rows times RESAMPLES numbers.
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, rows, rows)
        means.append(total[drawn].sum() / weight[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_score(per_example: list[float], *, greater_is_better: bool = True) -> Score:
    """Return the mean over rows, with Wilson's interval where every row is right or wrong, else the
    bootstrap's.
    """
    value = math.fsum(per_example) / len(per_example)
    if set(per_example) <= {0.0, 1.0}:
        low, high = wilson(sum(per_example), len(per_example))
    else:
        low, high = bootstrap(per_example)
    return Score(
        value=value,
        low=low,
        high=high,
        per_example=per_example,
        greater_is_better=greater_is_better,
    )
