"""What would change a decision: limits at which a verdict turns, and other objectives."""

from typing import Any

from tests.tasks.made import REFERENCE, exact, measured, repeated
from weighbridge.serving.latencies import Latencies
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.report_changes import needed, other_objectives
from weighbridge.tasks.select import Decision, select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.evidence import Evidence
from weighbridge.tasks.statistics.verdict import Claim, Verdict


def turning(
    candidate: Measurement, champion: Measurement | None = None, **args: Any
) -> dict[str, str]:
    """What would change the verdict on each rule, for the one candidate."""
    decision = select([candidate], REFERENCE, champion, SelectArgs(**args), REFERENCE)
    return {piece.rule: needed(piece, candidate, decision) for piece in decision.evidence}


def test_a_limit_that_is_kept_turns_where_the_figure_or_its_interval_ends() -> None:
    turns = turning(measured("a"), floor=0.5, max_memory=1 << 30, max_cost=1, max_ttft_p95=2.0)
    assert turns["floor"] == "a limit above 0.98"
    assert turns["max_memory"] == "a limit below 50.0 MiB"
    assert turns["max_cost"] == "a limit below 0.1"
    assert turns["max_ttft_p95"] == "a limit below 50 ms"
    assert turns["max_errors"] == "—", "nothing is less than none"


def test_at_the_limit_that_is_named_the_verdict_turns() -> None:
    """The figures themselves are asked again, a little to both sides of it."""
    turns = float(turning(measured("a", right=190), max_loss=0.2)["max_loss"].split()[-1])
    for limit, verdict in ((turns * 1.02, "shown"), (turns * 0.98, "undecided")):
        args = SelectArgs(max_loss=limit)
        decision = select([measured("a", right=190)], REFERENCE, None, args, REFERENCE)
        (loss,) = [piece for piece in decision.evidence if piece.rule == "max_loss"]
        assert loss.claim.verdict == verdict


def timed(*seconds: float) -> Measurement:
    """A candidate whose requests got their first tokens after so many seconds."""
    found = measured("a")
    latencies = Latencies.of(seconds)
    update = {"ttft": latencies, "ttft_p95": latencies.percentile(0.95)}
    load = [one.model_copy(update=update) for one in found.load]
    return found.model_copy(update={"load": load})


def test_a_latency_limit_turns_where_its_requests_do_not_show_it_any_more() -> None:
    # 105 requests show a p95 that none of them is beyond, not one that two are beyond.
    quick = timed(*(n / 1000 for n in range(1, 104)), 0.3, 0.5)
    assert (quick.load[0].ttft_p95 or 1.0) < 0.102
    said = turning(quick, max_ttft_p95=2.0)["max_ttft_p95"]
    assert said == "a limit below 500 ms"
    for limit, verdict in ((0.5, "shown"), (0.49, "undecided")):
        decision = select([quick], REFERENCE, None, SelectArgs(max_ttft_p95=limit), REFERENCE)
        (piece,) = [one for one in decision.evidence if one.rule == "max_ttft_p95"]
        assert piece.claim.verdict == verdict
        if verdict == "undecided":
            assert needed(piece, quick, decision).endswith(" requests")


def test_of_a_limit_that_is_broken_the_one_is_told_that_would_not_be() -> None:
    candidate = measured("a", test=198).model_copy(
        update={"test_scores": {**REFERENCE, "exact_match": exact(150)}}
    )
    assert turning(candidate, max_loss=0.02)["max_loss"].startswith("a limit above 0.1")


def test_what_is_undecided_takes_rows_and_what_cannot_be_told_is_not() -> None:
    undecided = turning(measured("a", right=196), max_loss=0.02)["max_loss"]
    assert undecided.endswith(" rows")
    assert int(undecided.split()[0].replace(",", "")) > 200


def test_a_share_of_answers_turns_at_the_end_of_its_interval() -> None:
    """As every score does that is limited from above; a size has no interval."""
    turning_points: dict[Verdict, str] = {
        "shown": "a limit below 3.0%",
        "refuted": "a limit above 1.0%",
    }
    for verdict, turns in turning_points.items():
        claim = Claim(verdict=verdict, estimate=0.02, low=0.01, high=0.03, why="")
        piece = Evidence(rule="max_empty", rows="test", claim=claim, seen=True)
        nobody = Decision(winner=None, keeps_champion=False, why="")
        assert needed(piece, None, nobody) == turns


def test_how_much_better_is_shown_to_be_is_what_an_improvement_may_ask_for() -> None:
    steady = (1.0, 1.01, 0.99, 1.005, 0.995)
    champion, faster = (
        repeated(measured(label, speed=speed), *steady)
        for label, speed in (("old", 300), ("new", 400))
    )
    turns = turning(faster, champion, margin=0.2)
    (better,) = [turn for rule, turn in turns.items() if "better by" in rule]
    assert 0.05 < float(better.removeprefix("a limit above ")) <= 1 / 3


def test_other_objectives_name_who_would_come_first() -> None:
    measurements = [
        measured("fast", speed=900, size=4 << 20),
        measured("small", speed=300, size=1 << 20, cost=0.3),
        measured("broken", right=20, size=1),
    ]
    decision = select(measurements, REFERENCE, None, SelectArgs())
    assert decision.finalist == "llama_cpp/fast"
    assert other_objectives(measurements, decision, SelectArgs()) == [
        "llama_cpp/small comes first by another objective: size (1.0 MiB), as measured once."
    ]


def test_figures_that_are_not_known_name_nobody() -> None:
    measurements = [measured("a", cost=None, request_cost=None)]
    nobody = Decision(winner=None, keeps_champion=False, why="")
    said = other_objectives(measurements, nobody, SelectArgs(objective="size"))
    assert "cost" not in said[0]
