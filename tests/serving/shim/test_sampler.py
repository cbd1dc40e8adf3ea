"""Tokens are drawn from logits as asked for."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from weighbridge.serving.shim.protocol import Sampling
from weighbridge.serving.shim.sampler import Sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.3, 0.2], np.float32))


def drawn(count: int = 2000, **options: Any) -> dict[int, float]:
    """Part of each token among many."""
    sampler = Sampler(Sampling(count, seed=1, **options))
    return {
        token: n / count
        for token, n in Counter(sampler.draw(LOGITS).id for _ in range(count)).items()
    }


def test_temperature_0_takes_the_likeliest() -> None:
    assert drawn(temperature=0) == {1: 1.0}


def test_temperature_1_draws_by_probability() -> None:
    assert drawn(temperature=1.0) == pytest.approx({0: 0.1, 1: 0.4, 2: 0.3, 3: 0.2}, abs=0.05)


def test_a_low_temperature_sharpens() -> None:
    assert drawn(temperature=0.5) == pytest.approx(
        {0: 1 / 30, 1: 16 / 30, 2: 9 / 30, 3: 4 / 30}, abs=0.05
    )


def test_top_k_leaves_the_likeliest() -> None:
    assert drawn(temperature=1.0, top_k=2) == pytest.approx({1: 4 / 7, 2: 3 / 7}, abs=0.05)


@pytest.mark.parametrize(
    ("top_p", "left"), [(0.35, {1}), (0.45, {1, 2}), (0.75, {1, 2, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_leaves_the_likeliest_that_reach_it(top_p: float, left: set[int]) -> None:
    assert set(drawn(temperature=1.0, top_p=top_p)) == left


def test_equal_seeds_give_equal_answers_and_others_do_not() -> None:
    def answer(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(50, temperature=1.0, seed=seed))
        return [sampler.draw(LOGITS).id for _ in range(50)]

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)
    assert answer(-7) == answer(-7)


def test_log_probabilities_are_those_before_any_temperature() -> None:
    token = Sampler(Sampling(1, temperature=0, logprobs=2)).draw(LOGITS)
    assert token.logprob == pytest.approx(np.log(0.4), abs=1e-6)
    assert [(other, round(float(np.exp(value)), 3)) for other, value in token.top] == [
        (1, 0.4),
        (2, 0.3),
    ]
