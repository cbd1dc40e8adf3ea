"""Limits: whoever is outside of one is out, and says why."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from tests.tasks.made import REFERENCE, decide, exact, measured
from weighbridge.serving.latencies import Latencies
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import SelectArgs


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


def test_a_floor_is_kept_by_the_end_of_the_interval() -> None:
    kept = decide(measured("x", right=198), floor=0.97)
    assert kept.winner == "llama_cpp/x"
    doubtful = decide(measured("x", right=198), floor=0.985)
    assert (doubtful.winner, doubtful.verdict) == (None, "undecided")
    assert "may be below the limit 0.985" in doubtful.why
    assert "rows would decide" in doubtful.why


def test_sizes_are_read_as_people_write_them() -> None:
    assert SelectArgs(max_memory="2 GiB").max_memory == 2 << 30  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="max_memory"):
        SelectArgs(max_memory="two")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "within"), [(20.0, True), (18.0, True), (22.0, True), (17.9, False), (44.0, False)]
)
def test_who_answers_at_another_length_does_other_work(tokens: float, within: bool) -> None:
    lengths = {"validation": 20.0, "test": 20.0}
    rambler = measured("rambler", speed=2000).model_copy(
        update={"answer_tokens": {"validation": tokens, "test": tokens}}
    )
    steady = measured("steady", speed=900).model_copy(update={"answer_tokens": lengths})
    decision = select(
        [rambler, steady], REFERENCE, None, SelectArgs(), REFERENCE, answer_tokens=lengths
    )
    assert decision.winner == f"llama_cpp/{'rambler' if within else 'steady'}"
    if not within:
        assert (
            "the unquantized model's 20 (allowed: 90% to 110% of that)"
            in (decision.reasons["llama_cpp/rambler"])
        )


@pytest.mark.parametrize(
    ("requests", "winner", "why"),
    [(90, "llama_cpp/x", "is within the limit 200 ms"), (50, None, "90 requests would decide")],
)
def test_a_limit_of_p95_takes_requests_enough(requests: int, winner: str | None, why: str) -> None:
    candidate = measured("x")
    load = candidate.load[-1].model_copy(update={"ttft": Latencies.of([0.05] * requests)})
    decision = decide(candidate.model_copy(update={"load": [load]}), max_ttft_p95=0.2)
    assert decision.winner == winner
    assert why in " ".join(piece.claim.why for piece in decision.evidence)
