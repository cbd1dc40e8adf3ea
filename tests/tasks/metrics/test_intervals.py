"""Confidence intervals, against figures known from elsewhere and against what must hold for any
input.
"""

import math
import random
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.made import measured
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.intervals import Z, mean_score, with_interval
from weighbridge.tasks.statistics.proportions import wilson


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
    assert wilson(successes, trials, Z) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(case: tuple[int, int]) -> None:
    low, high = wilson(*case, Z)
    assert 0 <= low <= case[0] / case[1] <= high <= 1
    assert low < high


def weighted(values: list[float], **options: Any) -> Score:
    weights = options.get("weights") or [1.0] * len(values)
    value = sum(x * w for x, w in zip(values, weights, strict=True)) / sum(weights)
    return with_interval(Score(value=value, low=value, high=value, per_example=values, **options))


def test_the_interval_of_a_mean_agrees_with_the_normal_one_where_that_holds() -> None:
    rng = random.Random(1)
    values = [rng.gauss(5, 2) for _ in range(400)]
    score = mean_score(values)
    assert (score.low + score.high) / 2 == pytest.approx(fmean(values), abs=0.02)
    assert score.high - score.low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.1)


def test_the_same_rows_give_the_same_interval_every_time() -> None:
    assert mean_score([1.1, 1.7, 1.3]) == mean_score([1.1, 1.7, 1.3])


def test_weights_count_in_the_interval() -> None:
    score = weighted([2.0, 1.0] * 50, weights=[9.0, 1.0] * 50)
    assert 1.8 < score.low < 1.9 < score.high < 1.96


def test_rows_that_are_all_right_still_leave_doubt() -> None:
    score = mean_score([1.0] * 20)
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.8389, abs=5e-5)


@pytest.mark.parametrize("values", [[1.0, 0.0], [2.5, 1.0], [0.75, 0.25]])
def test_rows_that_say_the_same_in_a_cluster_count_once(values: list[float]) -> None:
    alone = mean_score(values * 20)
    repeated = [value for value in values * 20 for _ in range(5)]
    clusters = [str(number // 5) for number in range(len(repeated))]
    together = weighted(repeated, clusters=clusters)
    apart = mean_score(repeated)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), rel=0.02)
    assert apart.high - apart.low < (together.high - together.low) / 2


def test_a_corpus_figure_has_the_spread_of_its_rows_around_itself() -> None:
    rows = [1.0, 2.0, 3.0] * 20
    score = with_interval(Score(value=5.0, low=5.0, high=5.0, per_example=rows))
    mean = mean_score(rows)
    assert (score.low, score.high) == pytest.approx((mean.low + 3, mean.high + 3))


def test_a_figure_without_rows_keeps_its_interval() -> None:
    score = Score(value=3.0, low=2.0, high=4.0, per_example=[])
    assert with_interval(score) == score


def test_what_is_not_a_number_is_read_again_as_such() -> None:
    score = mean_score([0.5, math.nan])
    document = measured("a").model_copy(update={"scores": {"judge": score}}).model_dump_json()
    again = Measurement.model_validate_json(document).scores["judge"]
    assert math.isnan(again.value)
    assert again.per_example[0] == 0.5
    assert math.isnan(again.per_example[1])
    of_earlier_releases = score.model_dump_json().replace('"NaN"', "null")
    assert math.isnan(Score.model_validate_json(of_earlier_releases).value)
