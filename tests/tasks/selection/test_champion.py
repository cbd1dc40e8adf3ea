"""What serves is measured as a candidate is: what takes its place, and what does not."""

import re

import pytest

from tests.tasks.made import (
    NOISY,
    OTHERWISE,
    REFERENCE,
    STEADY,
    at_rates,
    decide,
    measured,
    repeated,
)
from weighbridge.core.errors import GateFailed
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select import Decision, require_winner, select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import Objective


def test_an_undecided_limit_never_ends_what_serves() -> None:
    decision = decide(measured("a", right=196), champion=measured("old"), max_loss=0.015)
    assert (decision.winner, decision.keeps_champion) == (None, True)
    require_winner(decision)


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


def test_rows_that_differ_are_counted_and_those_that_one_side_lacks_are_named() -> None:
    fewer, champion = measured("a", right=194), measured("old", right=199)
    score = fewer.test_scores["exact_match"]
    kept = {"value": 193 / 199, "per_example": score.per_example[1:], "ids": score.ids[1:]}
    test = {**fewer.test_scores, "exact_match": score.model_copy(update=kept)}
    decision = decide(
        fewer.model_copy(update={"test_scores": test}), champion=champion, max_loss=0.2, margin=0.1
    )
    for rule in ("max_loss", "better than the champion", "not worse than the champion"):
        (why,) = [piece.claim.why for piece in decision.evidence if piece.rule == rule]
        assert "right alone in 0 rows, wrong alone in" in why
        assert "of 199; left out, in one of them alone: 0" in why


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
