"""A release beside its repetition, figure by figure."""

from tests.tasks.made import load, measured
from weighbridge.tasks.measurement import Measurement, Repeat
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.replay import Agreement, compare, outside


def repeated_at(*rates: float) -> list[Repeat]:
    return [
        Repeat(block=block, load=load(500, 8, requests_per_second=rate))
        for block, rate in enumerate(rates)
    ]


def agreements(recorded: Measurement, repeated: Measurement) -> dict[str, Agreement]:
    return {figure.figure: figure.agreement for figure in compare(recorded, repeated, {}, {})}


def test_the_same_again_is_equal_in_quality_and_nothing_left_its_interval() -> None:
    figures = compare(
        measured("Q8_0"), measured("Q8_0"), {"base": "sha256:a"}, {"base": "sha256:a"}
    )
    assert not outside(figures)
    assert {figure.agreement for figure in figures} == {"equal", "no interval"}


def test_a_score_may_move_within_the_interval_it_was_recorded_with() -> None:
    # exact(198) of 200 is recorded as 0.98 to 1.0.
    assert agreements(measured("a"), measured("a", right=197))["exact match"] == "inside"
    assert agreements(measured("a"), measured("a", right=195))["exact match"] == "outside"
    assert agreements(measured("a"), measured("a", test=195)) == {
        **agreements(measured("a"), measured("a")),
        "exact match, test split": "outside",
    }


def test_a_score_that_is_no_number_or_gone_is_outside() -> None:
    broken = Score(value=float("nan"), low=0, high=1, per_example=[])
    for scores in ({}, {"exact_match": broken}):
        again = measured("a").model_copy(update={"scores": scores})
        assert agreements(measured("a"), again)["exact match"] == "outside"


def test_speed_is_held_to_the_spread_of_its_repeats_where_it_was_repeated() -> None:
    recorded = measured("a", requests=16).model_copy(
        update={"repeats": repeated_at(15, 16, 17, 16, 16)}
    )
    at_8, at_1 = "requests/s at concurrency 8", "requests/s at concurrency 1"
    # t(0.975, 4) = 2.776, s = 0.707, sqrt(1.2): 13.85 to 18.15.
    for rate, agreement in (
        (13.8, "outside"),
        (13.9, "inside"),
        (18.1, "inside"),
        (18.2, "outside"),
    ):
        assert agreements(recorded, measured("a", requests=rate))[at_8] == agreement
    assert agreements(recorded, measured("a", requests=3))[at_1] == "no interval"
    twice = measured("a").model_copy(update={"repeats": repeated_at(15, 17)})
    assert agreements(twice, measured("a", requests=3))[at_8] == "no interval"


def test_other_bytes_are_named() -> None:
    (adapter, *_) = compare(
        measured("a"),
        measured("a"),
        {"adapter": "sha256:0123456789abcdef"},
        {"adapter": "sha256:b"},
    )
    assert (adapter.recorded, adapter.repeated, adapter.agreement) == (
        "0123456789ab",
        "b",
        "other bytes",
    )
