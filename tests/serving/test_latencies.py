"""Latencies of which some never came."""

import pytest

from weighbridge.serving.latencies import KEPT, Latencies


def test_what_was_cut_off_moves_the_percentile_as_kaplan_and_meier_say() -> None:
    # Their estimate of 1 - F after 1, 3 and 4, with cuts at 2 and 5: 4/5, 4/5 x 2/3, x 1/2.
    latencies = Latencies.of([1.0, 3.0, 4.0], [2.0, 5.0])
    assert latencies.percentile(0.2) == 1.0
    assert latencies.percentile(0.46) == 3.0
    assert latencies.percentile(0.5) == 4.0
    assert latencies.percentile(0.74) is None


def test_a_request_that_failed_stands_behind_all_others() -> None:
    latencies = Latencies.of([1.0] * 90, never=10)
    assert latencies.percentile(0.5) == 1.0
    assert latencies.percentile(0.95) is None
    assert Latencies.of([1.0] * 99, never=1).percentile(0.95) == 1.0


def test_nothing_has_no_percentile_and_no_interval() -> None:
    assert Latencies().percentile(0.5) is None
    assert Latencies().interval(0.95) is None


def test_an_interval_is_of_two_of_the_latencies_or_open_upwards() -> None:
    values = [number / 100 for number in range(1, 101)]
    assert Latencies.of(values).interval(0.95) == (0.9, 1.0)
    low, high = Latencies.of(values[:95], never=5).interval(0.95) or (0, 0)
    assert (low, high) == (0.9, float("inf"))
    assert Latencies.of(values[:71]).interval(0.95) is None


def test_a_request_cut_off_before_the_limit_may_have_kept_it() -> None:
    assert Latencies.of([0.1, 0.5], [0.2, 0.9], never=1).overruns(0.4) == (3, 4)


def test_very_many_are_thinned_without_moving_percentiles_or_counts() -> None:
    values = [number / 10_000 for number in range(10_000)]
    latencies = Latencies.of(values)
    assert (len(latencies.seen), latencies.total) == (KEPT, 10_000)
    assert latencies.percentile(0.95) == pytest.approx(0.95, abs=0.001)
    assert latencies.overruns(0.9)[0] == pytest.approx(1000, abs=10)
    low, high = latencies.interval(0.95) or (0, 0)
    assert low == pytest.approx(0.9456, abs=0.001)
    assert high == pytest.approx(0.9542, abs=0.001)
    assert Latencies.model_validate_json(latencies.model_dump_json()) == latencies


def test_a_percentile_is_told_with_its_interval_and_not_of_fewer_than_have_one() -> None:
    values = [number / 100 for number in range(1, 101)]
    assert Latencies.of(values).told(0.95) == "950 ms (900 ms–1.0 s)"
    assert Latencies.of(values[:71]).told(0.95) == "— (71 of 72 requests)"
    assert Latencies.of(values).told(0.99) == "— (100 of 368 requests)"
    assert Latencies.of(values[:96], never=4).told(0.95) == "950 ms (at least 900 ms)"
    assert Latencies.of(values[:95], never=5).told(0.95) == "— (at least 900 ms)"
    assert Latencies.of(values[:50], never=50).told(0.95) == "— (no answer)"
