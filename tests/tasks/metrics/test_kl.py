"""KL: what whole distributions give where all is told, and never more where less is."""

import math
from typing import Any

import numpy as np
import pytest

from weighbridge.tasks.metrics.base import Score, load_metric
from weighbridge.tasks.metrics.kl import KlArgs, divergence
from weighbridge.tasks.statistics.paired import better
from weighbridge.tasks.statistics.rows import follows_from_rows

Distribution = dict[int, float]


def two(seed: int, width: int = 50) -> tuple[Distribution, Distribution]:
    drawn = np.random.default_rng(seed).normal(scale=3, size=(2, width))
    drawn -= np.log(np.exp(drawn).sum(axis=1, keepdims=True))
    first, second = (dict(enumerate(map(float, row))) for row in drawn)
    return first, second


def likeliest(distribution: Distribution, count: int) -> Distribution:
    ordered = sorted(distribution, key=lambda token: -distribution[token])
    return {token: distribution[token] for token in ordered[:count]}


def scored(rows: list[list[tuple[Distribution, Distribution]]]) -> Score:
    score: Score = load_metric("kl").score(KlArgs(), rows, [""] * len(rows))
    return score


def test_of_whole_distributions_it_is_the_divergence() -> None:
    first, second = two(0)
    expected = sum(math.exp(first[token]) * (first[token] - second[token]) for token in first)
    assert divergence(first, second) == pytest.approx(expected, abs=1e-6)
    assert divergence(first, first) == 0


@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_told_can_only_make_it_larger(seed: int) -> None:
    first, second = two(seed)
    told = [
        divergence(likeliest(first, count), likeliest(second, count)) for count in (1, 5, 20, 50)
    ]
    assert 0 <= max(told) <= divergence(first, second) + 1e-9


def test_two_that_tell_of_no_common_token_are_no_evidence() -> None:
    assert divergence({1: -0.1}, {2: -0.1}) == 0


def test_a_token_that_the_candidate_holds_impossible_is_damage_and_a_number() -> None:
    assert divergence({1: -0.01, 2: -4.7}, {1: -1e30, 2: 0.0}) > 100


def test_every_token_counts_alike_and_rows_can_be_paired() -> None:
    first, second = two(1)
    one = divergence(first, second)
    score = scored([[(first, second)], [(first, first)] * 3])
    assert score.value == pytest.approx(one / 4)
    assert score.per_example == pytest.approx([one, 0])
    assert score.weights == [1, 3]
    assert follows_from_rows(score)
    assert not score.greater_is_better
    more = scored([[(first, second)] * 2] * 40).model_copy(update={"ids": [*map(str, range(40))]})
    none = scored([[(first, first)] * 2] * 40).model_copy(update={"ids": [*map(str, range(40))]})
    assert better(more, none).verdict == "shown"


def test_how_many_tokens_are_compared_is_an_option_with_bounds() -> None:
    arguments: dict[str, Any] = {"kind": "kl", "top": 5}
    assert load_metric("kl").Args.model_validate(arguments) == KlArgs(top=5)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        KlArgs(top=0)
