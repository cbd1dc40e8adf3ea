"""What a visit is worth is what it may change about who is held to be the best."""

import math

import numpy as np
import pytest

from weighbridge.tasks.search.knowledge_gradient import knowledge_gradient

NOISE = np.full(2, 0.25)


def test_of_two_equals_a_visit_is_worth_what_the_normal_law_says() -> None:
    # One of them is known: the highest mean rises by the positive part of what the other moves.
    worth = knowledge_gradient(np.zeros(2), np.diag([1.0, 0.0]), NOISE)
    moved = 1 / math.sqrt(1 + 0.25)
    assert worth[0] == pytest.approx(moved / math.sqrt(2 * math.pi), rel=0.01)
    assert worth[1] == pytest.approx(0.0, abs=1e-12)


def test_one_that_is_behind_is_worth_less_and_one_that_is_noisy_too() -> None:
    near, far = (
        knowledge_gradient(np.array([0.0, -gap]), np.diag([0.0, 1.0]), NOISE)[1]
        for gap in (0.5, 2.0)
    )
    noisy = knowledge_gradient(np.array([0.0, -0.5]), np.diag([0.0, 1.0]), 16 * NOISE)[1]
    assert near > far > 0
    assert near > noisy > 0


def test_who_moves_with_the_best_cannot_overtake_it() -> None:
    together = np.ones((2, 2))
    worth = knowledge_gradient(np.array([0.1, 0.0]), together, NOISE)
    assert np.abs(worth).max() < 1e-12


def test_a_visit_may_tell_of_others_than_its_own_setting() -> None:
    # The first is far behind, but what is seen of it tells which of the others is better.
    mean = np.array([-9.0, 0.0, 0.0])
    covariance = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, -0.8], [-0.9, -0.8, 1.0]])
    assert knowledge_gradient(mean, covariance, np.full(3, 0.25))[0] > 0.2
