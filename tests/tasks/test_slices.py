"""Slices: each kind of row has the score of its own rows, by the figure of the whole."""

import math

import pytest

from tests.tasks.made import exact
from weighbridge.tasks.data import Row
from weighbridge.tasks.evaluation_rows import sample
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.slices import by_slice, slices_of


def test_each_slice_has_the_share_and_interval_of_its_own_rows() -> None:
    score = mean_score([1.0, 1.0, 0.0, 0.0]).model_copy(update={"ids": ["a", "b", "c", "d"]})
    parts = by_slice(score, {"a": "x", "b": "y", "c": "y", "d": "y"})
    assert {name: part.value for name, part in parts.items()} == {"x": 1.0, "y": 1 / 3}
    assert parts["y"].ids == ["b", "c", "d"]
    assert parts["y"].low == pytest.approx(mean_score([1.0, 0.0, 0.0]).low)


def test_a_ratio_is_computed_anew_and_not_averaged() -> None:
    score = Score(
        value=math.exp((1 * 1 + 2 * 3 + 9) / 5),
        low=0,
        high=9,
        per_example=[math.e, math.exp(2), math.exp(9)],
        weights=[1, 3, 1],
        ids=["a", "b", "c"],
        figure="exponential",
    )
    assert by_slice(score, {"a": "x", "b": "x"})["x"].value == pytest.approx(math.exp(7 / 4))


def test_a_figure_of_a_whole_corpus_has_no_slices() -> None:
    nameless = exact(3, 4).model_copy(update={"ids": []})
    corpus = exact(3, 4).model_copy(update={"value": 0.1})
    assert by_slice(nameless, {"0": "x"}) == by_slice(corpus, {"0": "x"}) == {}


def test_a_sample_has_the_same_part_of_every_slice() -> None:
    rows = [
        Row(prompt=f"{n}", completion="a", id=f"{n}", slice="rare" if n < 10 else "usual")
        for n in range(100)
    ]
    drawn = sample(rows, 50)
    assert sum(row.slice == "rare" for row in drawn) == 5
    assert slices_of(drawn)[drawn[0].id] == "rare"
