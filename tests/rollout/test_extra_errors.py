"""How much more often a new version may fail: the confidence sequence, and what it takes."""

import random

import pytest

from weighbridge.rollout.extra_errors import Counts, answers_needed, bound, excludes


def test_without_an_error_it_takes_as_many_answers_as_walds_test_and_a_few_more() -> None:
    for extra, least in ((0.2, 14), (0.04, 74), (0.02, 149)):
        # ln(20) / -ln(1 - extra): a bet on "nobody fails" alone.
        assert least <= answers_needed(extra) <= 1.2 * least


def test_the_more_errors_are_usual_the_more_answers_it_takes() -> None:
    assert answers_needed(0.04) < answers_needed(0.04, 0.01) < answers_needed(0.04, 0.05)
    assert answers_needed(0.001, 0.5) == 1_000_000


def test_the_bound_is_where_exclusion_begins() -> None:
    old, new = Counts(3, 400), Counts(4, 300)
    most = bound(old, new)
    assert excludes(old, new, most + 1e-4)
    assert not excludes(old, new, most - 1e-4)
    assert bound(Counts(0, 0), Counts(0, 0)) == 1


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.04), (0.02, 0.06), (0.3, 0.34)])
def test_what_is_true_is_excluded_in_few_rollouts_however_often_one_looks(
    before: float, now: float
) -> None:
    rng, wrong, rollouts = random.Random(3), 0, 150
    for _ in range(rollouts):
        old = new = Counts(0, 0)
        for _ in range(40):
            new = Counts(new.failed + sum(rng.random() < now for _ in range(8)), new.requests + 8)
            old = Counts(old.failed + sum(rng.random() < before for _ in range(8)), new.requests)
            if excludes(old, new, 0.04):
                wrong += 1
                break
    # 5 % are 7.5; that 14 would be found is one chance in fifty.
    assert wrong <= 13


def test_a_version_that_fails_less_often_than_the_old_one_is_told_soon() -> None:
    assert excludes(Counts(30, 100), Counts(0, 100), 0.02)
    assert not excludes(Counts(0, 100), Counts(30, 100), 0.2)
