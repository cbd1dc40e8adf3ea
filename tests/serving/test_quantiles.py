"""Percentiles and limits: what is known of them, against published figures."""

import random

import pytest

from weighbridge.serving.quantiles import (
    binomial_cdf,
    decide,
    interval_ranks,
    percentile,
    requests_to_decide,
)


def test_percentiles_lie_between_neighbours_and_are_unknown_of_nothing() -> None:
    assert percentile([], 0.5) is None
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
    assert percentile([1.0, 2.0, 3.0], 1.0) == 3.0


@pytest.mark.parametrize(("part", "fewest"), [(0.95, 72), (0.99, 368)])
def test_a_percentile_has_an_interval_from_so_many_requests_on(part: float, fewest: int) -> None:
    assert interval_ranks(fewest - 1, part) is None
    assert interval_ranks(fewest, part) is not None


def test_the_interval_of_a_median_is_that_of_the_tables() -> None:
    # Conover, Practical Nonparametric Statistics (1999), 3.2: 40th and 61st of 100.
    assert interval_ranks(100, 0.5) == (40, 61)


@pytest.mark.parametrize(("part", "fewest"), [(0.95, 90), (0.99, 459)])
def test_without_an_overrun_a_limit_is_met_from_so_many_requests_on(
    part: float, fewest: int
) -> None:
    assert decide((0, 0), fewest - 1, part) == "undecided"
    assert decide((0, 0), fewest, part) == "met"
    assert requests_to_decide(0, 10, part) == fewest


def test_limits_are_missed_and_undecided_too() -> None:
    assert decide((12, 12), 100, 0.95) == "missed"
    assert decide((5, 5), 100, 0.95) == "undecided"
    # What was cut off before the limit speaks for neither side.
    assert decide((0, 12), 100, 0.95) == "undecided"
    assert decide((0, 0), 0, 0.95) == "undecided"
    assert requests_to_decide(5, 100, 0.95) is None


def test_a_limit_that_is_kept_by_exactly_its_part_is_seldom_called_met_or_missed() -> None:
    drawn = random.Random(0)
    outcomes = [
        decide((late, late), 500, 0.95)
        for late in (sum(drawn.random() < 0.05 for _ in range(500)) for _ in range(1000))
    ]
    assert outcomes.count("met") <= 15
    assert outcomes.count("missed") <= 15


def test_the_binomial_holds_for_many_trials() -> None:
    # scipy.stats.binom.cdf.
    assert binomial_cdf(1500, 30000, 0.05) == pytest.approx(0.5068688, abs=1e-6)
    assert binomial_cdf(0, 72, 0.05) == pytest.approx(0.95**72)
