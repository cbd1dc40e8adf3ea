"""select: limits, objective, champion."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tests.tasks.made import REFERENCE, exact, measured, nll
from weighbridge.core.errors import GateFailed
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select import Decision, require_winner, select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection_rules import loss


def decide(
    *measurements: Measurement, champion: Measurement | None = None, **limits: Any
) -> Decision:
    return select(measurements, REFERENCE, champion, SelectArgs(**limits))


@pytest.mark.parametrize(
    ("objective", "winner"),
    [
        ("throughput", "fast"),
        ("requests", "brisk"),
        ("cost", "cheap"),
        ("request_cost", "thrifty"),
        ("latency", "quick"),
        ("quality", "good"),
        ("memory", "lean"),
        ("size", "small"),
    ],
)
def test_the_objective_decides_among_those_within_the_limits(objective: str, winner: str) -> None:
    decision = decide(
        measured("fast", speed=900),
        measured("cheap", cost=0.01),
        measured("brisk", requests=20),
        measured("thrifty", request_cost=0.1),
        measured("quick", ttft=0.01),
        measured("good", right=200),
        measured("lean", memory=1 << 20),
        measured("small", size=1 << 10),
        objective=objective,
    )
    assert decision.winner == f"llama_cpp/{winner}"
    assert len(decision.reasons) == 7


@pytest.mark.parametrize(
    ("candidate", "limits", "words"),
    [
        (
            measured("x", right=100),
            {"floor": 0.9, "max_loss": None},
            "exact_match 0.5 is below the limit 0.9",
        ),
        (
            measured("x", right=150),
            {},
            "exact_match is 0.24 worse than the unquantized model's 0.99",
        ),
        (measured("x", likelihood=0.2), {}, "nll is 0.19 worse"),
        (
            measured("x", ttft=0.5),
            {"max_ttft_p95": 0.2},
            "p95 TTFT 500 ms at concurrency 8 is above the limit 200 ms",
        ),
        (
            measured("x", speed=10),
            {"min_tokens_per_second": 20},
            "10 tokens/s at concurrency 8 is below the limit 20",
        ),
        (
            measured("x", requests=1.5),
            {"min_requests_per_second": 20},
            "1.5 requests/s at concurrency 8 is below the limit 20",
        ),
        (measured("x"), {"max_request_cost": 0.1}, "0.2 per 1,000 requests is above the limit 0.1"),
        (measured("x", request_cost=None), {"max_request_cost": 0.1}, "its cost is not known"),
        (measured("x"), {"max_memory": "20 MiB"}, "50.0 MiB of memory is above the limit 20.0 MiB"),
        (measured("x"), {"max_size": "1 MiB"}, "its size 2.0 MiB is above the limit 1.0 MiB"),
        (measured("x"), {"max_cost": 0.01}, "0.1 per million tokens is above the limit 0.01"),
        (
            measured("x", cost=None),
            {"max_cost": 0.01},
            "its cost is not known: set weigh.price_per_hour",
        ),
        (
            measured("x", cost=None),
            {"objective": "cost"},
            "its cost is not known: set weigh.price_per_hour",
        ),
        (measured("x", errors=1), {}, "1 of 32 requests failed at concurrency 8"),
        (measured("x", failure="the engine\ndied"), {}, "could not be measured: the engine died"),
        (measured("x"), {"concurrency": 3}, "its speed at concurrency 3 was not measured"),
        (
            measured("x"),
            {"metric": "bleu"},
            "its bleu was not measured (measured: exact_match, nll)",
        ),
        (measured("x", speed=math.nan), {}, "its throughput is not known"),
        (measured("x", likelihood=math.nan), {}, "its nll is not a number"),
        (measured("x", ttft=math.nan), {"max_ttft_p95": 0.2}, "is above the limit 200 ms"),
    ],
)
def test_a_candidate_outside_a_limit_is_out_with_its_reason(
    candidate: Measurement, limits: dict[str, Any], words: str
) -> None:
    decision = decide(candidate, **limits)
    assert decision.winner is None
    assert words in decision.reasons["llama_cpp/x"]
    assert decision.refused == ["llama_cpp/x"]


def test_a_score_that_is_not_a_number_does_not_win() -> None:
    broken = measured("x").model_copy(
        update={"scores": {"exact_match": exact(1).model_copy(update={"value": math.nan})}}
    )
    assert decide(broken).reasons == {"llama_cpp/x": "its exact_match is not a number"}


def test_no_winner_stops_with_every_reason_on_one_line() -> None:
    decision = decide(measured("a", right=10), measured("b", failure="it died\nTraceback"))
    with pytest.raises(
        GateFailed, match=r"llama_cpp/a: exact_match .*; llama_cpp/b: could not be measured"
    ) as stop:
        require_winner(decision)
    assert "\n" not in str(stop.value)


def test_nothing_measured_is_no_winner() -> None:
    with pytest.raises(GateFailed, match="none was measured"):
        require_winner(decide())


def test_ties_go_to_the_better_then_the_smaller() -> None:
    assert decide(measured("a"), measured("b", right=199)).winner == "llama_cpp/b"
    assert decide(measured("a"), measured("b", size=1)).winner == "llama_cpp/b"


def test_a_loss_within_the_limit_but_beyond_it_in_its_interval_is_noted_or_refused_as_asked() -> (
    None
):
    doubtful = measured("x", right=196)
    accepted = decide(doubtful, max_loss=0.015)
    assert accepted.winner == "llama_cpp/x"
    assert "may be up to" in accepted.notes["llama_cpp/x"]
    refused = decide(doubtful, max_loss=0.015, on_doubt="refuse")
    assert "too few rows to be sure" in refused.reasons["llama_cpp/x"]


def test_losses_are_compared_row_by_row_where_the_rows_are_the_same() -> None:
    same = loss(exact(150), exact(150))
    assert (same.low, same.value, same.high) == (0, 0, 0)
    apart = loss(exact(150), exact(150).model_copy(update={"per_example": []}))
    assert apart.low < 0 < apart.high


def test_a_lower_score_is_a_gain_where_lower_is_better() -> None:
    assert loss(nll(0.2), nll(0.1)).value == pytest.approx(-0.1)
    as_quality = SelectArgs(metric="nll", objective="quality")
    best = select(
        [measured("a", likelihood=0.02), measured("b", likelihood=0.01)],
        REFERENCE,
        None,
        as_quality,
    )
    assert best.winner == "llama_cpp/b"


def test_the_champion_keeps_its_place_when_nobody_is_better_by_enough() -> None:
    decision = decide(measured("a", speed=510), champion=measured("old", speed=500))
    assert decision.winner is None
    assert decision.keeps_champion
    assert "not better than the champion by 5%" in decision.reasons["llama_cpp/a"]
    require_winner(decision)


def test_the_champion_goes_when_somebody_is_better_by_enough() -> None:
    decision = decide(measured("a", speed=600), champion=measured("old", speed=500))
    assert decision.winner == "llama_cpp/a"
    assert not decision.keeps_champion
    assert "600 tokens/s against 500 tokens/s" in decision.why


def test_the_champion_goes_when_somebody_answers_better_beyond_doubt() -> None:
    decision = decide(
        measured("a", right=198, speed=400),
        champion=measured("old", right=180, speed=500),
        max_loss=None,
    )
    assert decision.winner == "llama_cpp/a"
    assert "beyond doubt better" in decision.why


def test_speed_does_not_buy_a_loss_of_quality_against_the_champion() -> None:
    decision = decide(
        measured("a", right=194, speed=900), champion=measured("old", right=200, speed=500)
    )
    assert decision.winner is None
    assert decision.keeps_champion


def test_a_champion_outside_the_limits_goes_whoever_is_slower() -> None:
    decision = decide(
        measured("a", speed=400), champion=measured("old", memory=1 << 40), max_memory="1 GiB"
    )
    assert decision.winner == "llama_cpp/a"
    assert "the champion is out of the limits" in decision.why


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (measured("old", speed=890), "it goes on serving"),
        (measured("old", speed=500), "llama_cpp/a takes its place: 900 tokens/s against 500"),
        (measured("old", content="a"), "it is llama_cpp/a, which wins, and goes on serving"),
    ],
)
def test_the_champion_has_a_reason_as_every_other_has(champion: Measurement, reason: str) -> None:
    serving = champion.candidate.model_copy(update={"label": "champion 6 (old)"})
    decision = decide(
        measured("a", speed=900), champion=champion.model_copy(update={"candidate": serving})
    )
    assert decision.reasons["champion 6 (old)"].startswith(reason)


def test_a_champion_that_was_faster_before_than_in_this_weighing_gives_its_place() -> None:
    before = measured("old", speed=890)
    serving = before.candidate.model_copy(update={"label": "champion 6 (old)"})
    decision = decide(
        measured("a", speed=900),
        measured("again", speed=500, content="old"),
        champion=before.model_copy(update={"candidate": serving}),
    )
    assert decision.winner == "llama_cpp/a"
    assert decision.reasons["champion 6 (old)"] == "llama_cpp/a takes its place"


def test_the_champion_weighed_again_is_the_winner_it_was() -> None:
    again = measured("a", speed=500)
    decision = decide(again, measured("b", speed=510), champion=again)
    assert decision.winner == "llama_cpp/a"
    assert decision.keeps_champion


def test_no_candidate_within_the_limits_is_a_failure_though_there_is_a_champion() -> None:
    decision = decide(measured("a", right=10), champion=measured("old"))
    with pytest.raises(GateFailed, match="what serves goes on serving"):
        require_winner(decision)


def test_sizes_are_read_as_people_write_them() -> None:
    assert SelectArgs(max_memory="2 GiB").max_memory == 2 << 30  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="max_memory"):
        SelectArgs(max_memory="two")  # type: ignore[arg-type]


def test_interval_of_unpaired_scores_grows_with_theirs() -> None:
    wide = Score(value=0.5, low=0.3, high=0.7, per_example=[])
    narrow = Score(value=0.5, low=0.49, high=0.51, per_example=[])
    assert loss(wide, wide).high > loss(narrow, narrow).high
