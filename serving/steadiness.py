"""What may be concluded from requests that queue behind each other: whether an open loop has run
away, and how many independent requests a run is worth.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Final

WARM_UP: Final = 0.2
"""Part of the arrivals that finds the engine idler than it will be: answered, and not measured."""
WORTH: Final = 0.8
"""Of the number of independent requests, which is itself uncertain: with it, queues exactly at
their limit are called good in 1 % of runs (python -m benchmarks.load).
"""
FEWEST_TO_SATURATE: Final = 30
"""Arrivals before which a line through them says nothing."""
GROWTH: Final = 0.05
"""Part of all arrivals that is left over at saturation: the engine answers 95 % of what comes."""


def requests_at(requests: int, concurrency: int) -> int:
    """Return how many are sent at least where so many are asked for: with fewer there would be no
    span in which all streams are busy.
    """
    return max(requests, 4 * concurrency)


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the slope of the least-squares line; 0 where all is at one place."""
    if len(xs) < 2 or max(xs) == min(xs):
        return 0.0
    return statistics.linear_regression(xs, ys).slope


def is_saturated(
    times: Sequence[float], under_way: Sequence[int], ttft: Sequence[float], limit: float
) -> bool:
    """Whether more comes than is answered: the requests under way and their times to the first
    token both grow along a line that has left the limit far behind.

    Args:
        times: of the arrivals.
        under_way: how many requests were under way at each of them.
        ttft: time to the first token of each; of one that has none yet, its age.
        limit: that the time to the first token should keep.
    """
    if len(times) < FEWEST_TO_SATURATE:
        return False
    span = times[-1] - times[0]
    left_over = slope(times, under_way) * span
    middle = statistics.fmean(ttft)
    end = middle + slope(times, ttft) * span / 2
    # A queue that keeps its p95 reaches twice the limit in one of 400 requests, and its line never.
    return left_over > GROWTH * len(times) and end > 2 * limit


def independent(values: Sequence[float]) -> float:
    """Return how many independent values are as informative as these, which follow each other.

    By the integrated autocorrelation time, its sum ended where neighbouring pairs are no longer
    positive (C. J. Geyer, Practical Markov chain Monte Carlo, Statistical Science 7, 1992). Never
    more than there are.
    """
    count = len(values)
    mean = statistics.fmean(values) if values else 0.0
    centred = [value - mean for value in values]
    variance = math.fsum(value * value for value in centred)
    if count < 4 or variance <= 0:
        return float(count)
    total, lag = 0.0, 0
    while lag + 1 < count // 2:
        pair = _covariance(centred, lag) + _covariance(centred, lag + 1)
        if pair <= 0:
            break
        total += pair
        lag += 2
    return min(float(count), count / max(2 * total / variance - 1, 1.0))


def _covariance(centred: Sequence[float], lag: int) -> float:
    return math.fsum(map(float.__mul__, centred[: len(centred) - lag], centred[lag:]))
