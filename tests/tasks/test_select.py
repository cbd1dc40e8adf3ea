"""select: limits, objective, champion."""

import math
import re
from typing import Any

import pytest
from pydantic import ValidationError

from tests.tasks.made import (
    NOISY,
    OTHERWISE,
    REFERENCE,
    STEADY,
    at_rates,
    exact,
    measured,
    repeated,
)
from weighbridge.core.errors import GateFailed
from weighbridge.serving.latencies import Latencies
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select import Decision, require_winner, select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import Objective


def decide(
    *measurements: Measurement, champion: Measurement | None = None, **limits: Any
) -> Decision:
    return select(measurements, REFERENCE, champion, SelectArgs(**limits), REFERENCE)


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
        measured("fast", right=180, speed=900),
        measured("cheap", right=180, cost=0.01),
        measured("brisk", right=180, requests=20),
        measured("thrifty", right=180, request_cost=0.1),
        measured("quick", right=180, ttft=0.01),
        measured("good", right=200),
        measured("lean", right=180, memory=1 << 20),
        measured("small", right=180, size=1 << 10),
        objective=objective,
        max_loss=0.2,
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


def test_ties_go_to_fewer_changed_options_then_to_the_smaller() -> None:
    tuned = measured("b", speed=504)
    engine = tuned.candidate.engine.model_copy(update={"threads": 2})
    tuned = tuned.model_copy(
        update={"candidate": tuned.candidate.model_copy(update={"engine": engine})}
    )
    decision = decide(measured("a"), tuned)
    assert decision.winner == "llama_cpp/a"
    assert "is tied with the fastest" in decision.why
    assert decide(measured("a"), measured("b", size=1, speed=496)).winner == "llama_cpp/b"
    assert decide(measured("a"), measured("b", size=1, speed=490)).winner == "llama_cpp/a"


def test_in_quality_those_are_tied_that_are_not_told_apart() -> None:
    asked = {"objective": "quality", "max_loss": None}
    assert decide(measured("a", right=200), measured("b", size=1), **asked).winner == "llama_cpp/b"
    assert (
        decide(measured("a", right=200), measured("b", right=190, size=1), **asked).winner
        == "llama_cpp/a"
    )


def test_a_doubt_is_not_released_and_not_refuted_and_tells_the_rows_that_decide() -> None:
    doubtful = measured("x", right=196)
    refused = decide(doubtful, max_loss=0.015)
    assert (refused.winner, refused.refused, refused.verdict) == (None, [], "undecided")
    with pytest.raises(
        GateFailed, match=r"undecided: .* may be up to .*; [0-9,]+ rows would decide"
    ):
        require_winner(refused)
    assert "more rows in the test split" in str(_failure(refused))


def _failure(decision: Decision) -> GateFailed:
    with pytest.raises(GateFailed) as stop:
        require_winner(decision)
    return stop.value


def test_a_doubt_is_released_where_the_recipe_accepts_it_and_the_report_says_so() -> None:
    accepted = decide(measured("x", right=196), max_loss=0.015, on_doubt="accept")
    assert accepted.winner == "llama_cpp/x"
    assert "may be up to" in accepted.notes["llama_cpp/x"]
    assert "released in doubt (select.on_doubt: accept)" in accepted.why
    beyond = decide(measured("x", right=194), max_loss=0.015, on_doubt="accept")
    assert beyond.winner is None, "its figure itself is beyond the limit"


def test_a_floor_is_kept_by_the_end_of_the_interval() -> None:
    kept = decide(measured("x", right=198), floor=0.97)
    assert kept.winner == "llama_cpp/x"
    doubtful = decide(measured("x", right=198), floor=0.985)
    assert (doubtful.winner, doubtful.verdict) == (None, "undecided")
    assert "may be below the limit 0.985" in doubtful.why
    assert "rows would decide" in doubtful.why


def test_an_undecided_limit_never_ends_what_serves() -> None:
    decision = decide(measured("a", right=196), champion=measured("old"), max_loss=0.015)
    assert (decision.winner, decision.keeps_champion) == (None, True)
    require_winner(decision)


def test_the_test_rows_decide_about_the_one_that_the_validation_rows_chose() -> None:
    decision = decide(measured("fast", speed=900, test=150), measured("slow"))
    assert (decision.finalist, decision.winner) == ("llama_cpp/fast", None)
    assert decision.verdict == "refuted"
    assert decision.finalist_score == exact(150)
    assert "on the test rows exact_match is 0.24 worse" in str(_failure(decision))
    assert decision.reasons["llama_cpp/slow"].startswith("slower"), "no second one is tried"


def test_the_likeliest_to_be_shown_to_keep_the_limits_is_chosen() -> None:
    decision = decide(measured("fast", speed=900, right=196), measured("sure"), max_loss=0.02)
    assert decision.winner == "llama_cpp/sure"
    assert "may be up to" in decision.notes["llama_cpp/fast"]
    assert decision.reasons["llama_cpp/fast"].startswith("less likely to be shown")


def test_rows_of_the_choice_prove_nothing() -> None:
    alone = measured("a").model_copy(update={"test_scores": {}})
    decision = decide(alone)
    assert decision.winner is None
    assert "was not measured on the test split" in decision.why


def test_a_lower_score_is_a_gain_where_lower_is_better() -> None:
    as_quality = SelectArgs(metric="nll", objective="quality")
    best = select(
        [measured("a", likelihood=0.02), measured("b", likelihood=0.01, size=3 << 20)],
        REFERENCE,
        None,
        as_quality,
    )
    assert best.winner == "llama_cpp/b"


@pytest.mark.parametrize(
    ("shares", "steady", "right", "winner", "words"),
    [
        (STEADY, True, 200, "llama_cpp/a", "600 tokens/s against 500 tokens/s"),
        (NOISY, True, 200, None, "5 repeats"),
        (STEADY, False, 200, None, "the machine became slower"),
        (STEADY, True, 194, None, "undecided whether its exact_match is worse than the champion's"),
        (STEADY, True, 180, None, "beyond doubt worse"),
    ],
)
def test_speed_takes_the_champions_place_by_its_repeats_where_quality_is_shown_to_be_no_worse(
    shares: tuple[float, ...], steady: bool, right: int, winner: str | None, words: str
) -> None:
    decision = decide(
        repeated(measured("a", speed=600, right=right), *shares, steady=steady),
        champion=repeated(measured("old", speed=500, right=200), *OTHERWISE, steady=steady),
        max_loss=0.2,
        margin=0.03,
    )
    assert decision.winner == winner
    assert decision.keeps_champion == (winner is None)
    assert words in decision.reasons["llama_cpp/old"] if winner else words in decision.why


def test_of_candidates_that_repeats_tie_the_smaller_one_is_chosen_else_the_estimate() -> None:
    one, other = measured("a", speed=600), measured("b", speed=500, size=1)
    assert decide(one, other).winner == "llama_cpp/a"
    in_doubt = decide(repeated(one, *NOISY), repeated(other, *OTHERWISE))
    assert in_doubt.winner == "llama_cpp/a"
    assert "from llama_cpp/b it is not told apart by repeats" in in_doubt.why
    assert "not told apart by repeats" in in_doubt.reasons["llama_cpp/b"]
    shown = decide(repeated(one, *STEADY), repeated(other, *OTHERWISE))
    assert "it is told apart by repeats (faster is shown" in shown.why
    equal = measured("a", speed=500)
    assert decide(repeated(equal, *STEADY), repeated(other, *OTHERWISE)).winner == "llama_cpp/b"


def test_speed_that_was_measured_once_takes_nobodys_place() -> None:
    decision = decide(measured("a", speed=600), champion=measured("old", speed=500))
    assert (decision.winner, decision.keeps_champion) == (None, True)
    assert decision.verdict == "undecided"
    assert "measured once: repeats decide (weigh.repeats)" in decision.reasons["llama_cpp/a"]
    require_winner(decision)


def test_a_size_decides_by_itself() -> None:
    for size, winner in ((1_900_000, "llama_cpp/a"), (2_050_000, None)):
        decision = decide(
            measured("a", size=size), champion=measured("old"), objective="size", margin=0.05
        )
        assert decision.winner == winner
    assert "takes the champion's place: 1.8 MiB against 2.0 MiB (the figures themselves" in (
        decide(
            measured("a", size=1_900_000), champion=measured("old"), objective="size", margin=0.05
        ).why
    )


def test_the_champion_goes_when_somebody_answers_better_beyond_doubt() -> None:
    decision = decide(
        measured("a", right=198, speed=400),
        champion=measured("old", right=180, speed=500),
        max_loss=None,
    )
    assert decision.winner == "llama_cpp/a"
    assert "beyond doubt better" in decision.why


@pytest.mark.parametrize("right", [180, 198])
def test_a_champion_is_not_put_out_by_anothers_fine_tune(right: int) -> None:
    decision = decide(
        measured("a", right=right, speed=400), champion=measured("old", right=right), max_loss=0.2
    )
    assert (decision.winner, decision.keeps_champion) == (None, True)


@pytest.mark.parametrize("speed", [100, 100_000])
def test_a_champion_that_could_not_be_measured_stays(speed: float) -> None:
    lost = measured("old", failure="the engine\ndied")
    for decision in (
        decide(measured("a", speed=speed), champion=lost),
        select(
            [measured("a", speed=speed)],
            REFERENCE,
            None,
            SelectArgs(),
            REFERENCE,
            unweighed="version 6 could not be compared: it was never weighed",
        ),
    ):
        assert (decision.winner, decision.keeps_champion) == (None, True)
        assert decision.verdict == "undecided"
        assert re.search("could not be (measured: the engine died|compared)", decision.why)
        require_winner(decision)


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
        (measured("old", right=150), "llama_cpp/a takes its place: its exact_match is 0.99"),
        (measured("old", content="a"), "it is llama_cpp/a, which wins, and goes on serving"),
    ],
)
def test_the_champion_has_a_reason_as_every_other_has(champion: Measurement, reason: str) -> None:
    serving = champion.candidate.model_copy(update={"label": "champion 6 (old)"})
    decision = decide(
        measured("a", speed=900), champion=champion.model_copy(update={"candidate": serving})
    )
    assert decision.reasons["champion 6 (old)"].startswith(reason)


def test_a_champion_that_was_smaller_before_than_in_this_weighing_gives_its_place() -> None:
    before = measured("old", memory=50 << 20)
    serving = before.candidate.model_copy(update={"label": "champion 6 (old)"})
    decision = decide(
        measured("a", memory=80 << 20),
        measured("again", memory=90 << 20, content="old"),
        champion=before.model_copy(update={"candidate": serving}),
        objective="memory",
        margin=0.05,
    )
    assert decision.winner == "llama_cpp/a"
    assert decision.reasons["champion 6 (old)"].startswith("llama_cpp/a takes its place: 80.0 MiB")


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


@pytest.mark.parametrize(
    ("challenger", "takes"),
    [((12.0, 15.0, 14.0), True), ((10.0, 15.0, 14.0), False), ((7.0, 8.5, 8.0), False)],
)
@pytest.mark.parametrize("objective", ["goodput", "request_cost", "cost"])
def test_goodput_and_costs_at_it_replace_a_champion_where_the_rates_do_not_overlap(
    challenger: tuple[float, float, float], takes: bool, objective: str
) -> None:
    champion = at_rates("champion", 9.0, 11.0, 10.0)

    def against(champion: Measurement) -> Decision:
        x = at_rates("x", *challenger)
        return decide(x, champion=champion, objective=objective, margin=0.1)

    decision = against(repeated(champion, *STEADY))
    assert (decision.winner == "llama_cpp/x") is takes
    assert decision.keeps_champion is not takes
    for in_doubt, why in (
        (champion, "the champion was not run again"),
        (repeated(champion, *STEADY, steady=False), "no speed is shown, for the machine became"),
    ):
        doubtful = against(in_doubt)
        assert (doubtful.winner, doubtful.verdict) == (None, "undecided")
        assert why in doubtful.why
        compared = Objective(SelectArgs(objective=objective))  # type: ignore[arg-type]
        claim = compared.improvement(in_doubt, at_rates("x", *challenger)).claim
        assert claim.verdict == "undecided"


def test_a_token_costs_less_where_a_request_has_more_of_them() -> None:
    def answering(made: Measurement, tokens: float) -> Measurement:
        assert made.goodput
        return made.model_copy(
            update={"goodput": made.goodput.model_copy(update={"answer_tokens": tokens})}
        )

    champion = repeated(answering(at_rates("champion", 9.0, 11.0, 10.0), 10), *STEADY)
    longer = answering(at_rates("x", 10.0, 15.0, 14.0), 20)
    for objective, winner in (("cost", "llama_cpp/x"), ("request_cost", None)):
        decision = decide(longer, champion=champion, objective=objective, margin=0.1)
        assert decision.winner == winner


def test_who_keeps_its_limits_at_no_rate_is_out() -> None:
    idle = at_rates("idle", 1.0, 2.0, 1.5).model_copy(update={"goodput": None})
    decision = decide(idle, at_rates("x", 9.0, 11.0, 10.0), objective="goodput")
    assert decision.winner == "llama_cpp/x"
    assert "it kept the limits at none of 3 rates" in decision.reasons["llama_cpp/idle"]
