"""Figures of traffic between two looks."""

from weighbridge.serving.traffic_figures import since, total


def test_counters_that_began_anew_are_not_subtracted() -> None:
    before = {"responses_2xx": 100.0, "responses_5xx": 5.0, "in_flight": 3.0}
    assert since(before, {"responses_2xx": 110.0, "responses_5xx": 15.0, "in_flight": 1.0}) == {
        "requests": 20.0,
        "errors": 0.5,
        "in_flight": 1.0,
    }
    assert since(before, {"responses_2xx": 8.0, "responses_5xx": 0.0}) == {
        "requests": 8.0,
        "errors": 0.0,
    }
    assert since(before, dict(before)) == {"requests": 0.0, "in_flight": 3.0}


def test_each_that_counts_begins_anew_by_itself() -> None:
    before = {"responses_2xx@a": 100.0, "seconds_total@a": 50.0, "responses_2xx@b": 40.0}
    now = {
        "responses_2xx@a": 4.0,
        "responses_5xx@a": 1.0,
        "seconds_total@a": 3.0,
        "responses_2xx@b": 42.0,
        "bytes_in@b": 400.0,
        "responses_2xx@c": 3.0,
        "seconds_total@c": 2.0,
    }
    assert since(before, now) == {
        "requests": 10.0,
        "errors": 0.1,
        "seconds_average": 0.5,
        "request_bytes": 40.0,
    }
    assert total(now, "responses_2xx") == 49
    assert total(now, "responses_4xx") == 0
