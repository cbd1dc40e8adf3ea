"""Percentiles that say how well they are known, and limits that are decided, in plain Python.

Here and not with the other statistics, because the load generator stops by them, and it travels in
every Bento.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Literal

Decided = Literal["met", "missed", "undecided"]
CONFIDENCE: Final = 0.99
"""At which MLPerf Inference decides whether a limit is kept."""
_ROUNDING: Final = 1e-9


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """Return the value below which `part` of the ordered values lie, between neighbours where
    needed; None of nothing.
    """
    if not ordered:
        return None
    position = part * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    if position == low or ordered[low] == ordered[high]:
        return ordered[low]
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@lru_cache(maxsize=4096)
def binomial_cdf(count: int, trials: int, chance: float) -> float:
    """Return the chance of at most `count` successes. It is the regularized incomplete beta
    function I(1 - chance; trials - count, count + 1).
    """
    if count < 0:
        return 0.0
    if count >= trials:
        return 1.0
    success, failure = math.log(chance), math.log1p(-chance)
    whole = math.lgamma(trials + 1)
    terms = (
        whole
        - math.lgamma(number + 1)
        - math.lgamma(trials - number + 1)
        + number * success
        + (trials - number) * failure
        for number in range(count + 1)
    )
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def interval_ranks(count: int, part: float, confidence: float = 0.95) -> tuple[int, int] | None:
    """Return the ranks (from 1) of the two of `count` ordered values between which the percentile
    lies with this confidence, each side wrong at most half of the rest. No distribution is assumed.

    None where there are too few: 95 % takes 72 values at p95 and 368 at p99 (David and Nagaraja,
    Order Statistics, 3rd edition, 7.1).
    """
    side = (1 - confidence) / 2 + _ROUNDING
    if binomial_cdf(0, count, part) > side or part**count > side:
        return None
    low = _first(lambda rank: binomial_cdf(rank, count, part) > side, count)
    high = _first(lambda rank: 1 - binomial_cdf(rank - 1, count, part) <= side, count)
    return low, high


@lru_cache
def fewest_for_interval(part: float, confidence: float = 0.95) -> int:
    """Return how many values a percentile takes to have an interval."""
    return next(
        count for count in itertools.count(1) if interval_ranks(count, part, confidence) is not None
    )


def _first(holds: Callable[[int], bool], last: int) -> int:
    """Return the first rank from 1 on for which it holds, as it then does for all higher ones."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def decide(
    overruns: tuple[int, int], total: int, part: float, confidence: float = CONFIDENCE
) -> Decided:
    """Return whether at least `part` of all requests keep a limit, as far as these show it.

    By the early stopping of MLPerf Inference: kept when I(part; h, t + 1) <= 1 - confidence for h
    requests within the limit and t beyond; the same test the other way says that it is missed.
    Without an overrun it takes 90 requests at p95 and 459 at p99.

    Args:
        overruns: how many certainly went beyond the limit, and how many may have: a request that
            was cut off before the limit is among the latter alone.
        total: how many were measured.
        part: 0.95 for p95.
        confidence: of either decision.
    """
    surely, possibly = overruns
    if total and binomial_cdf(possibly, total, 1 - part) <= 1 - confidence + _ROUNDING:
        return "met"
    if 1 - binomial_cdf(surely - 1, total, 1 - part) <= 1 - confidence + _ROUNDING:
        return "missed"
    return "undecided"


def requests_to_decide(
    overruns: int, total: int, part: float, confidence: float = CONFIDENCE
) -> int | None:
    """Return how many requests would decide a limit if as many of them went beyond it as did so
    far; None where no number below a million would.
    """
    share, most = overruns / total if total else 0.0, 1_000_000

    def decided(count: int) -> bool:
        beyond = round(share * count)
        return decide((beyond, beyond), count, part, confidence) != "undecided"

    count = max(total, 1)
    while not decided(count):
        count *= 2
        if count > most:
            return None
    return max(total, count // 2) + _first(
        lambda more: decided(max(total, count // 2) + more), count - max(total, count // 2)
    )
