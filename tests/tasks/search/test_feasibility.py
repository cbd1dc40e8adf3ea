"""What fails is learned by value and by pair of values: a reason under which something worked is
none, and those that explain more failures weigh more.
"""

import numpy as np
import pytest

from weighbridge.tasks.search.feasibility import MOST_LIKELY, Feasibility

CODES = [[threads, flash, cache] for threads in (0, 1) for flash in (0, 1) for cache in (0, 1)]
"""Threads, flash attention (1: off) and cache (1: 8 bits); flash off fails with 8 bits."""


def number(threads: int, flash: int, cache: int) -> int:
    return CODES.index([threads, flash, cache])


def test_nothing_is_held_against_anybody_before_something_fails() -> None:
    assert not Feasibility(CODES).failing([0, 1], []).any()


def test_a_pair_is_suspected_where_each_of_its_values_has_worked() -> None:
    worked = [number(0, 1, 0), number(0, 0, 1), number(1, 0, 0)]
    failing = Feasibility(CODES).failing(worked, [number(0, 1, 1)])
    assert failing[number(1, 1, 1)] == MOST_LIKELY
    assert failing[number(0, 1, 1)] == 1.0
    assert not failing[worked].any()


def test_what_has_worked_is_no_reason() -> None:
    failed = [number(0, 1, 1)]
    suspected = Feasibility(CODES).failing([], failed)
    cleared = Feasibility(CODES).failing([number(1, 1, 0)], failed)
    assert cleared[number(1, 1, 0)] == 0 < suspected[number(1, 1, 0)]


def test_the_reason_that_explains_more_failures_weighs_more_than_its_share() -> None:
    # Two failures have cache 8 bits in common, and one has as many reasons of its own.
    failing = Feasibility(CODES).failing([], [number(0, 0, 1), number(1, 1, 1)])
    common, apart = failing[number(0, 1, 1)], failing[number(0, 0, 0)]
    assert common > 2.5 * apart


def test_a_guess_leaves_a_chance() -> None:
    failing = Feasibility([[0], [1], [1]]).failing([0], [1])
    assert failing.tolist() == pytest.approx([0.0, 1.0, MOST_LIKELY])
    assert np.all(failing[[0, 2]] < 1)
