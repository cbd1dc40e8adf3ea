"""How much more often may the new version fail? What its requests and the old one's exclude.

H0 says: the new version's error rate is above the old one's by at least `extra`. The e-value is a
mixture of likelihoods under "it is not" divided by the largest likelihood under H0. Whatever pair
of rates H0 holds, it is at most the likelihood ratio against that pair, which is a nonnegative
martingale: so the chance that the e-value ever reaches 1/alpha is at most alpha, whatever is looked
at and whenever one stops, and all `extra` that are excluded by then make a one-sided confidence
sequence. It takes each version's rate as constant while a rollout goes on; where an outage of both
hides a difference, the comparison of where errors happen (sequential_test.py) still sees it.

Sources:

- H. Robbins, Statistical methods related to the law of the iterated logarithm, Annals of
  Mathematical Statistics 41 (1970): mixtures of likelihood ratios, confidence sequences.
- L. Wasserman, A. Ramdas and S. Balakrishnan, Universal inference, PNAS 117 (2020),
  arXiv:1912.11436: the largest likelihood of a composite H0 as denominator.
- A. Wald, Sequential analysis, 1947: the requests that a likelihood ratio takes.
"""

import math
import sys
from functools import lru_cache
from typing import Final, NamedTuple

ALPHA: Final = 0.05
"""One-sided: 95 % confidence."""
_ZERO, _SAME, _APART = 0.6, 0.25, 0.15
"""Weights of the alternatives: nobody fails, both fail alike, each at a rate of its own."""
_PRIOR: Final = (0.5, 10.0)
"""Beta distribution of an error rate: most are small."""
_STEPS: Final = 40
UNREACHABLE: Final = 1_000_000
"""Answers that no rollout waits for."""
_IMPOSSIBLE: Final = -1e300


class Counts(NamedTuple):
    """The errors among the requests of one version."""

    failed: int
    requests: int


def excludes(old: Counts, new: Counts, extra: float, alpha: float = ALPHA) -> bool:
    """Whether it is excluded that the new version fails more often by `extra` (0 to 1) or more."""
    return extra > 1 or _log_e_value(old, new, extra) >= -math.log(alpha)


def bound(old: Counts, new: Counts, alpha: float = ALPHA) -> float:
    """Return the upper end of the confidence sequence: larger extra errors are excluded."""
    low, high = 0.0, 1.0
    if not excludes(old, new, high, alpha):
        return high
    for _ in range(_STEPS // 2):
        middle = (low + high) / 2
        if excludes(old, new, middle, alpha):
            high = middle
        else:
            low = middle
    return high


@lru_cache
def answers_needed(extra: float, usual: float = 0.0, alpha: float = ALPHA) -> int:
    """Return about how many answers of the new version exclude `extra`, where both fail at the
    rate `usual` and the old one answers as many; `UNREACHABLE` for as many as that, or more.
    """
    low, high = 0, 1
    while high < UNREACHABLE and not _is_expected_to_exclude(high, extra, usual, alpha):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _is_expected_to_exclude(middle, extra, usual, alpha):
            high = middle
        else:
            low = middle
    return min(high, UNREACHABLE)


def _is_expected_to_exclude(answers: int, extra: float, usual: float, alpha: float) -> bool:
    # Not rounded down: 99 answers at 1 % are not 99 without an error.
    counts = Counts(math.ceil(usual * answers), answers)
    return excludes(counts, counts, extra, alpha)


def _log_e_value(old: Counts, new: Counts, extra: float) -> float:
    both = Counts(old.failed + new.failed, old.requests + new.requests)
    parts = [
        math.log(_SAME) + _log_mixture(both),
        math.log(_APART) + _log_mixture(old) + _log_mixture(new),
    ]
    if both.failed == 0:
        parts.append(math.log(_ZERO))
    highest = max(parts)
    log_mixture = highest + math.log(sum(math.exp(part - highest) for part in parts))
    return log_mixture - _highest_log_likelihood(old, new, extra)


def _log_mixture(counts: Counts) -> float:
    """Return the log of the mean likelihood over `_PRIOR`: beta-binomial, without its constant."""
    a, b = _PRIOR
    passed = counts.requests - counts.failed
    return _log_beta(a + counts.failed, b + passed) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _highest_log_likelihood(old: Counts, new: Counts, extra: float) -> float:
    """Return the log of the largest likelihood under H0."""
    rates = [counts.failed / counts.requests if counts.requests else 0.0 for counts in (old, new)]
    if new.requests and rates[1] - rates[0] >= extra:
        return _log_likelihood(old, rates[0]) + _log_likelihood(new, rates[1])

    # Else it lies where the rates differ by just `extra`, and is concave along that line.
    low, high = 0.0, 1 - extra
    # Without an error, the lower the rate the likelier.
    for _ in range(_STEPS if high > 0 and (old.failed or new.failed) else 0):
        middle = (low + high) / 2
        if _slope(old, middle) + _slope(new, middle + extra) > 0:
            low = middle
        else:
            high = middle
    return max(
        _log_likelihood(old, rate) + _log_likelihood(new, rate + extra) for rate in (0.0, low)
    )


def _slope(counts: Counts, rate: float) -> float:
    """Return how fast the log likelihood rises with the rate, which is above 0."""
    # A rate just below 1 may be rounded to it.
    rest = max(1 - rate, sys.float_info.epsilon)
    return counts.failed / rate - (counts.requests - counts.failed) / rest


def _log_likelihood(counts: Counts, rate: float) -> float:
    failed, passed = counts.failed, counts.requests - counts.failed
    if (failed and rate <= 0) or (passed and rate >= 1):
        return _IMPOSSIBLE
    return (failed * math.log(rate) if failed else 0.0) + (
        passed * math.log1p(-rate) if passed else 0.0
    )
