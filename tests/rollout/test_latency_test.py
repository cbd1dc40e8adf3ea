"""Latency: the same lengths are compared, a warm-up is let pass, and old load says nothing."""

import random
from typing import Any

from weighbridge.rollout.latency_test import RECENT, LatencyTest
from weighbridge.serving.gateway.models import FinishedRequest


def answer(seconds: float, **facts: Any) -> FinishedRequest:
    fields = {"status": 200, "stream": False, "truncated": False, "at": 0.0, **facts}
    return FinishedRequest(server="7", seconds=seconds, **fields)


def seen(test: LatencyTest, new: FinishedRequest, old: FinishedRequest, pairs: int = 60) -> None:
    for _ in range(pairs):
        test.take(old, False)
        test.take(new, True)


def test_answers_at_more_length_are_not_slower() -> None:
    test = LatencyTest(1.5)
    seen(test, answer(3.0, bytes=3000), answer(1.0, bytes=1000))
    assert test.excludes(1.5, 20)
    assert test.evidence < 1


def test_neither_are_the_same_words_in_fewer_bytes() -> None:
    test = LatencyTest(1.5)
    seen(test, answer(1.0, bytes=500), answer(1.0, bytes=1000))
    assert test.excludes(1.5, 20)


def test_what_takes_twice_as_long_for_as_many_bytes_is_slower() -> None:
    test = LatencyTest(1.5)
    seen(test, answer(2.0, bytes=1000), answer(1.0, bytes=1000))
    assert test.evidence > 100
    assert not test.excludes(1.9, 20)
    assert 1.9 < test.bound() < 2.1


def test_a_first_token_that_comes_late_is_slower_though_the_rest_is_as_fast() -> None:
    test = LatencyTest(1.5)
    old = answer(5.2, stream=True, first_byte=0.2, bytes=9000)
    seen(test, answer(5.6, stream=True, first_byte=0.6, bytes=9000), old)
    assert test.evidence > 100
    assert not test.excludes(1.5, 20)


def test_answers_of_the_warm_up_do_not_count() -> None:
    cold, warm = LatencyTest(1.5, 0), LatencyTest(1.5, 40)
    for test in (cold, warm):
        seen(test, answer(5.0), answer(1.0), 40)
    assert cold.evidence > 100
    assert warm.evidence == 1
    seen(warm, answer(1.0), answer(1.0), 20)
    assert warm.excludes(1.5, 20)


def test_old_answers_of_another_hour_are_not_compared_with() -> None:
    test = LatencyTest(1.5)
    for _ in range(60):
        test.take(answer(1.0), False)
    for _ in range(60):
        test.take(answer(9.0, at=RECENT + 1), True)
    assert test.evidence == 1


def test_answers_that_differ_by_chance_alone_are_hardly_ever_found_slower() -> None:
    rng, alarms = random.Random(5), 0
    for _ in range(100):
        test = LatencyTest(1.5)
        for _ in range(300):
            test.take(answer(rng.lognormvariate(0, 0.7)), False)
            # At the limit itself: it is not slower than allowed.
            test.take(answer(1.5 * rng.lognormvariate(0, 0.7)), True)
            if test.evidence >= 20:
                alarms += 1
                break
    assert alarms <= 10
