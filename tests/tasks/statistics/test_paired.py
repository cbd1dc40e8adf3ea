"""Claims about two scores: what decides them, and what leaves them undecided."""

import math
import random
from typing import Any

import numpy as np
import pytest

from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.statistics.paired import better, not_worse
from weighbridge.tasks.statistics.resampling import BLEU

ROWS = 200


def scored(values: list[float], *, ids: list[str] | None = None, **options: Any) -> Score:
    weights = options.get("weights") or [1.0] * len(values)
    value = math.fsum(x * w for x, w in zip(values, weights, strict=True)) / math.fsum(weights)
    names = [f"row {number}" for number in range(len(values))] if ids is None else ids
    ends = {"low": options.pop("low", value - 0.05), "high": options.pop("high", value + 0.05)}
    return Score(value=value, per_example=values, ids=names, **ends, **options)


def answers(right: int, rows: int = ROWS, first: int = 0) -> list[float]:
    """Right in `right` rows on end."""
    return [float(first <= number < first + right) for number in range(rows)]


def test_more_right_answers_are_shown_to_be_better_and_fewer_refuted() -> None:
    few, many = scored(answers(150)), scored(answers(170))
    claim = better(few, many)
    assert (claim.verdict, claim.estimate, claim.needed) == ("shown", 0.1, None)
    assert 0 < claim.low < 0.1 < claim.high
    assert "right alone in 20 rows, wrong alone in 0 of 200" in claim.why
    assert better(many, few).verdict == "refuted"


def test_a_difference_that_chance_makes_is_undecided_and_says_how_many_rows_would_decide() -> None:
    claim = better(scored(answers(150)), scored(answers(150, first=3)))
    assert claim.verdict == "undecided"
    claim = better(scored(answers(150)), scored(answers(153, first=2)))
    assert claim.verdict == "undecided"
    assert claim.needed is not None
    assert claim.needed > ROWS


def test_no_answer_that_differs_proves_nothing_in_ten_rows() -> None:
    same = scored(answers(5, 10))
    assert not_worse(same, same, 0.02).verdict == "undecided"
    assert better(same, same).verdict == "undecided"


def test_no_answer_that_differs_shows_not_worse_where_there_are_rows_enough() -> None:
    same = scored(answers(150))
    assert not_worse(same, same, 0.02).verdict == "shown"


def test_not_worse_is_refuted_where_the_whole_interval_lies_beyond_the_margin() -> None:
    assert not_worse(scored(answers(200)), scored(answers(150)), 0.02).verdict == "refuted"


def test_rows_are_paired_by_id_whatever_their_order() -> None:
    first, second = scored(answers(150)), scored(answers(170))
    mixed = list(range(ROWS))
    random.Random(1).shuffle(mixed)
    shuffled = scored([second.per_example[i] for i in mixed], ids=[second.ids[i] for i in mixed])
    assert better(first, shuffled) == better(first, second)


def test_rows_that_one_side_lacks_are_named_and_do_not_count() -> None:
    first = scored(answers(150))
    second = scored([*answers(170)[:-1], 1.0], ids=[*first.ids[:-1], "another row"])
    claim = better(first, second)
    assert "of 199; left out, in one of them alone: row 199, another row" in claim.why


def test_lower_is_better_where_the_metric_says_so() -> None:
    first = scored(answers(150), greater_is_better=False)
    second = scored(answers(170), greater_is_better=False)
    claim = better(first, second)
    assert (claim.verdict, claim.estimate) == ("refuted", -0.1)


def test_records_without_ids_are_compared_by_their_intervals() -> None:
    first = scored(answers(100), ids=[], low=0.45, high=0.55)
    second = scored(answers(150), ids=[], low=0.7, high=0.8)
    claim = better(first, second)
    assert claim.verdict == "shown"
    assert (claim.low, claim.high) == pytest.approx(
        (0.25 - math.hypot(0.05, 0.05), 0.25 + math.hypot(0.05, 0.05))
    )
    assert "not paired, by the two intervals: no ids of the rows are kept" in claim.why


def test_figures_without_an_interval_decide_nothing() -> None:
    first, second = (Score(value=of, low=of, high=of, per_example=[]) for of in (0.1, 0.9))
    claim = better(first, second)
    assert (claim.verdict, claim.needed) == ("undecided", None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_decides_nothing(value: float) -> None:
    broken = scored(answers(150)).model_copy(update={"value": value})
    claim = not_worse(scored(answers(150)), broken, 0.02)
    assert (claim.verdict, claim.why) == ("undecided", "one of the two is not a number")


def test_wrong_answers_of_one_document_count_as_one_piece_of_evidence() -> None:
    first, second = answers(150), answers(162)
    apart = better(scored(first), scored(second))
    document = [str(number // 20) for number in range(ROWS)]
    together = better(scored(first, clusters=document), scored(second, clusters=document))
    assert (apart.verdict, together.verdict) == ("shown", "undecided")


def graded(seed: int, shift: float = 0.0, noise: float = 0.1) -> list[float]:
    base, own = random.Random(7), random.Random(seed)
    return [base.random() + shift + own.gauss(0, noise) for _ in range(ROWS)]


def test_graded_answers_are_compared_row_by_row() -> None:
    first, second = scored(graded(1)), scored(graded(2, 0.05))
    claim = better(first, second)
    assert claim.verdict == "shown"
    # Rows differ by 0.29, and the two answers of a row by 0.14 alone.
    assert claim.high - claim.low == pytest.approx(2 * 1.96 * 0.1414 / math.sqrt(ROWS), rel=0.1)
    assert not_worse(first, scored(graded(2, -0.01)), 0.05).verdict == "shown"
    assert not_worse(first, scored(graded(2, -0.2)), 0.05).verdict == "refuted"


def test_long_rows_count_for_as_many_tokens_as_they_have() -> None:
    weights = [1.0 if number % 2 else 99.0 for number in range(ROWS)]
    first = scored(graded(1), weights=weights, greater_is_better=False)
    worse_in_long = [x + (0.1 if number % 2 == 0 else -0.1) for number, x in enumerate(graded(2))]
    claim = better(first, scored(worse_in_long, weights=weights, greater_is_better=False))
    assert claim.verdict == "refuted"
    assert claim.estimate == pytest.approx(-0.098, abs=0.02)


@pytest.mark.parametrize(("documents", "verdict"), [(4, "undecided"), (8, "shown")])
def test_few_documents_prove_nothing_however_alike_they_are(documents: int, verdict: str) -> None:
    first = graded(1)
    second = [score + 0.1 for score in first]
    names = [str(number % documents) for number in range(ROWS)]
    assert better(scored(first, clusters=names), scored(second, clusters=names)).verdict == verdict


def test_of_many_equal_graded_answers_a_few_that_differ_prove_nothing() -> None:
    first, second = graded(1), graded(1)
    second[:3] = [score + 0.5 for score in second[:3]]
    claim = better(scored(first), scored(second))
    assert claim.verdict == "undecided"
    assert "200 rows, of which 3 differ" in claim.why
    # One of them more would be a chance of 1 in 2^5 to either side, and one more 1 in 2^6.
    second[3:6] = [score + 0.5 for score in second[3:6]]
    assert better(scored(first), scored(second)).verdict == "shown"
    assert not_worse(scored(first), scored(first), 0.03).verdict == "shown"
    assert not_worse(scored(first[:30]), scored(first[:30]), 0.03).verdict == "undecided"


def perplexity(nats: list[float]) -> Score:
    weights = [float(1 + number % 50) for number in range(ROWS)]
    mean = math.fsum(x * w for x, w in zip(nats, weights, strict=True)) / math.fsum(weights)
    return scored([math.exp(x) for x in nats], greater_is_better=False).model_copy(
        update={"value": math.exp(mean), "weights": weights, "figure": "exponential"}
    )


def test_perplexity_is_compared_as_a_figure_of_all_tokens() -> None:
    before, after = perplexity(graded(1)), perplexity(graded(1, -0.05))
    claim = better(before, after)
    assert (claim.verdict, claim.estimate) == ("shown", before.value - after.value)
    assert claim.low < claim.estimate < claim.high
    assert better(before, perplexity(graded(1))).verdict == "undecided"


def bleu(wrong: float) -> Score:
    """Answers of eight words, of which so large a part has its last word wrong."""
    draw = random.Random(3)
    right = [8 - (draw.random() < wrong) for _ in range(ROWS)]
    statistics = [
        [*(float(words - order) for words in (right[n], 8) for order in range(4)), 8.0, 8.0]
        for n in range(ROWS)
    ]
    value = float(BLEU.value(np.sum(statistics, axis=0)))
    return scored([0.0] * ROWS).model_copy(
        update={"value": value, "statistics": statistics, "figure": "bleu"}
    )


def test_bleu_is_compared_as_a_figure_of_the_corpus() -> None:
    before, after = bleu(0.2), bleu(0.6)
    claim = better(before, after)
    assert (claim.verdict, claim.estimate) == ("refuted", after.value - before.value)
    assert claim.low < claim.estimate < claim.high < 0
    assert better(before, bleu(0.2)).verdict == "undecided"


@pytest.mark.parametrize(
    "score",
    [
        scored([0.5] * 10),
        scored([0.1, 0.7] * 5, weights=[3.0, 7.0] * 5),
        bleu(0.2),
        perplexity(graded(1)),
    ],
)
def test_figures_of_which_no_row_differs_have_an_interval_all_the_same(score: Score) -> None:
    claim = not_worse(score, score, 1e-6)
    assert (claim.verdict, claim.estimate) == ("undecided", 0)
    assert claim.low < -1e-3
    assert claim.high > 1e-3
