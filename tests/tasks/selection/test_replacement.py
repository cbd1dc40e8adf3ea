"""Challenger against champion: better, or not worse and better in the objective."""

import pytest

from tests.tasks.made import exact, measured
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.replacement import replacement

ROWS = 200


def answering(label: str, rows: list[float], size: int) -> Measurement:
    score = exact(round(sum(rows))).model_copy(update={"per_example": rows})
    return measured(label, size=size).model_copy(update={"test_scores": {"exact_match": score}})


@pytest.mark.parametrize(
    ("margin", "verdict", "words"),
    [
        (0.05, "shown", "not worse than the champion's by 0.05"),
        # The interval's end is just within, by luck: equal answers would hardly ever show it.
        (0.008, "undecided", "too few rows to test whether its exact_match is worse"),
    ],
)
def test_a_margin_that_the_rows_could_hardly_show_is_not_shown_by_luck(
    margin: float, verdict: str, words: str
) -> None:
    before = [0.0] * 32 + [1.0] * 19 + [1.0] * (ROWS - 51)
    after = [1.0] * 32 + [0.0] * 19 + [1.0] * (ROWS - 51)
    judged = replacement(
        answering("old", before, 2 << 20),
        answering("a", after, 1 << 20),
        "test",
        SelectArgs(objective="size", margin=margin),
    )
    assert judged.verdict == verdict
    assert words in judged.why
