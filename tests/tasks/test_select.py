"""select: who wins by the objective, and when nobody does."""

import pytest

from tests.tasks.made import (
    NOISY,
    OTHERWISE,
    REFERENCE,
    STEADY,
    at_rates,
    decide,
    exact,
    measured,
    repeated,
)
from weighbridge.core.errors import GateFailed
from weighbridge.tasks.select import Decision, require_winner, select
from weighbridge.tasks.select_args import SelectArgs


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


def test_who_is_likeliest_to_beat_the_champion_is_told_by_the_validation_rows_alone() -> None:
    champion = measured("old", right=170)
    good_at_choosing = measured("a", right=199, test=170)
    good_at_proving = measured("b", right=170, test=199, speed=900)
    decision = decide(good_at_choosing, good_at_proving, champion=champion, max_loss=None)
    assert decision.finalist == "llama_cpp/a"
    assert decision.keeps_champion, "what the test rows hold of the other one chooses nobody"


def test_a_lower_score_is_a_gain_where_lower_is_better() -> None:
    as_quality = SelectArgs(metric="nll", objective="quality")
    best = select(
        [measured("a", likelihood=0.02), measured("b", likelihood=0.01, size=3 << 20)],
        REFERENCE,
        None,
        as_quality,
    )
    assert best.winner == "llama_cpp/b"


def test_of_candidates_that_repeats_tie_the_smaller_one_is_chosen_else_the_estimate() -> None:
    one, other = measured("a", speed=600), measured("b", speed=500, size=1)
    assert decide(one, other).winner == "llama_cpp/a"
    in_doubt = decide(repeated(one, *NOISY), repeated(other, *OTHERWISE))
    assert in_doubt.winner == "llama_cpp/a"
    assert in_doubt.why.startswith("llama_cpp/a was the fastest by repeats (measured once: ")
    assert "from llama_cpp/b it is not told apart by repeats" in in_doubt.why
    assert "not told apart by repeats" in in_doubt.reasons["llama_cpp/b"]
    shown = decide(repeated(one, *STEADY), repeated(other, *OTHERWISE))
    assert shown.why.startswith("llama_cpp/a is the fastest by repeats (measured once: ")
    assert "it is told apart by repeats (faster is shown" in shown.why
    equal = measured("a", speed=500)
    assert decide(repeated(equal, *STEADY), repeated(other, *OTHERWISE)).winner == "llama_cpp/b"


def test_who_keeps_its_limits_at_no_rate_is_out() -> None:
    idle = at_rates("idle", 1.0, 2.0, 1.5).model_copy(update={"goodput": None})
    decision = decide(idle, at_rates("x", 9.0, 11.0, 10.0), objective="goodput")
    assert decision.winner == "llama_cpp/x"
    assert "it kept the limits at none of 3 rates" in decision.reasons["llama_cpp/idle"]
