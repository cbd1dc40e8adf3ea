"""Confidence intervals, against figures known from elsewhere and against what must hold for any
input.
"""

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.tasks.metrics.intervals import bootstrap, mean_score, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, trials: int, low: float, high: float
) -> None:
    """The four worked examples of R. G. Newcombe, Statistics in Medicine 17 (1998), table I."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(case: tuple[int, int]) -> None:
    low, high = wilson(*case)
    assert 0 <= low <= case[0] / case[1] <= high <= 1
    assert low < high


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_holds() -> None:
    rng = random.Random(1)
    values = [rng.gauss(5, 2) for _ in range(400)]
    low, high = bootstrap(values)
    assert (low + high) / 2 == pytest.approx(fmean(values), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)


def test_the_bootstrap_gives_the_same_interval_every_time() -> None:
    assert bootstrap([0.1, 0.7, 0.3]) == bootstrap([0.1, 0.7, 0.3])


def test_weights_count_in_the_bootstrap() -> None:
    low, high = bootstrap([1.0, 0.0] * 50, weights=[9.0, 1.0] * 50)
    assert 0.8 < low < 0.9 < high < 0.95


def test_rows_that_are_all_right_still_leave_doubt() -> None:
    score = mean_score([1.0] * 20)
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.8389, abs=5e-5)
