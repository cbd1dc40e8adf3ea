"""Monitoring: a fall below the floor counts when it is proven, and is acted on when it comes twice
in a row.
"""

import pytest

from tests.stand_ins.openai import Behaviour, serve
from tests.tasks.made import exact, measured, nll
from weighbridge.rollout.deploy_args import MonitorArgs
from weighbridge.rollout.monitor import (
    Evidence,
    MonitorCheck,
    check,
    has_fallen,
    input_drift,
    judge_traffic,
    next_questions,
)
from weighbridge.rollout.probe import ProbeQuestion
from weighbridge.rollout.sequential_test import Judgement
from weighbridge.tasks.measurement import Measurement

KNOWN = {f"question {n}": f"answer {n}" for n in range(20)}
QUESTIONS = [
    ProbeQuestion(prompt=q, reference=a, answer=a, scores={"exact_match": 1.0})
    for q, a in KNOWN.items()
]


@pytest.fixture
def measurement() -> Measurement:
    return measured("model").model_copy(update={"scores": {"exact_match": exact(190, 200)}})


@pytest.mark.parametrize(
    ("known", "floor", "verdict"),
    [
        (20, 0.9, "pass"),
        (0, 0.9, "fail"),
        (6, None, "fail"),
        # 0.95 was measured: it may lose most answers before it is below this floor.
        (12, 0.3, "pass"),
    ],
)
def test_what_counts_is_a_fall_below_the_floor(
    measurement: Measurement, known: int, floor: float | None, verdict: str
) -> None:
    with serve(Behaviour(answers=dict(list(KNOWN.items())[:known]))) as server:
        assert check(server.url, measurement, QUESTIONS, floor, rows=1000).verdict == verdict


def test_a_model_that_was_measured_below_the_floor_is_left_alone_while_it_does_not_fall(
    measurement: Measurement,
) -> None:
    with serve(Behaviour(answers=KNOWN)) as server:
        assert check(server.url, measurement, QUESTIONS, 0.99).verdict == "pass"


@pytest.mark.parametrize(("rows", "floor"), [([0.1, 1.4], 3.0), ([0.1, 0.3], 1.0)])
def test_a_floor_in_another_unit_than_shares_of_answers_hides_no_fall(
    rows: list[float], floor: float
) -> None:
    scores = {"nll": nll(0.2).model_copy(update={"per_example": rows})}
    model = measured("model").model_copy(update={"scores": scores})
    with serve(Behaviour()) as server:  # no answer is what it was
        judged = check(server.url, model, QUESTIONS, floor, rows=1000, metric="nll")
    assert (judged.verdict, judged.why.split(" over")[0]) == ("fail", "100% of the answers changed")


def test_nobody_there_is_no_fall(measurement: Measurement) -> None:
    assert check("http://127.0.0.1:9", measurement, QUESTIONS, 0.9).verdict == "error"
    assert check("http://127.0.0.1:9", measurement, [], 0.9).verdict == "inconclusive"


def checks(history: str) -> list[MonitorCheck]:
    """`7:pass 7:fail …`, in the order of time."""
    pairs = [word.split(":") for word in history.split()]
    return [
        MonitorCheck.model_validate({"version": v, "verdict": w, "at": float(n)})
        for n, (v, w) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ("", False),
        ("7:fail", False),
        ("7:pass 7:fail", False),
        ("7:fail 7:fail", True),
        ("7:fail 7:fail 7:pass", False),
        ("7:fail 7:pass 7:fail", False),
        ("7:fail 7:error 7:inconclusive 7:fail", True),
        ("7:fail 7:fail 7:error", True),
        ("6:fail 7:fail", False),
        ("7:fail 6:pass 7:fail", False),
        ("7:fail 7:fail 6:pass", False),
    ],
)
def test_two_falls_in_a_row_of_the_version_that_serves(history: str, expected: bool) -> None:
    assert has_fallen(list(reversed(checks(history))), "7") is expected


def test_all_rows_come_in_turn_each_round_in_another_order() -> None:
    asked = [next_questions(QUESTIONS, cursor, 8) for cursor in range(0, 40, 8)]
    prompts = [question.prompt for questions in asked for question in questions]
    assert set(prompts[:20]) == set(prompts[20:]) == set(KNOWN)
    assert prompts[:20] != prompts[20:]
    assert next_questions([], 5, 8) == []
    assert len(next_questions(QUESTIONS, 3, 500)) == len(QUESTIONS)


def test_a_fall_that_no_check_proves_is_proven_by_several(measurement: Measurement) -> None:
    evidence, verdicts = Evidence(), []
    with serve(Behaviour(answers=dict(list(KNOWN.items())[:12]))) as server:
        for _ in range(3):
            judged = check(server.url, measurement, QUESTIONS, None, evidence=evidence, rows=1000)
            verdicts.append(judged.verdict)
            # As it is kept in a file.
            evidence = Evidence.model_validate_json(evidence.model_dump_json())
    assert verdicts[0] != "fail"
    assert verdicts[-1] == "fail"


def test_months_in_which_nothing_is_wrong_do_not_hide_a_fall() -> None:
    fresh, old = Evidence(), Evidence()
    for _ in range(500):
        old.bet("answers", [0.0] * 32, 0.05, -1.0)
    for evidence in (fresh, old):
        assert evidence.bet("answers", [1.0] * 20, 0.05, -1.0) > 1000


def judged(evidence: Evidence, *checks: dict[str, float], **args: object) -> Judgement:
    for figures in checks:
        judgement = judge_traffic(figures, evidence, MonitorArgs.model_validate(args))
    return judgement


def test_errors_beyond_what_is_usual_are_a_fall_after_some_checks_and_a_burst_is_none() -> None:
    usual = {"requests": 400.0, "errors": 0.01, "seconds_average": 1.0}
    outage = {"requests": 400.0, "errors": 1.0, "seconds_average": 1.0}
    worse = {"requests": 400.0, "errors": 0.15, "seconds_average": 1.0}
    evidence = Evidence()
    assert judged(evidence, *[usual] * 200).verdict == "pass"
    assert judged(evidence, outage).verdict == "pass"
    assert judged(evidence, *[usual] * 20).verdict == "pass"
    assert judged(evidence, *[worse] * 12).verdict == "fail"
    assert judged(evidence, {}).verdict == "pass"


def test_latency_is_shown_and_acted_on_only_where_that_is_asked_for() -> None:
    usual = {"requests": 400.0, "errors": 0.0, "seconds_average": 1.0}
    slow = {**usual, "seconds_average": 2.5}
    evidence = Evidence()
    shown = judged(evidence, *[usual] * 20, *[slow] * 15)
    assert (shown.verdict, "slower" in shown.why) == ("pass", True)
    assert judged(evidence, slow, act_on=["latency"]).verdict == "fail"


def test_clients_prompts_are_held_beside_those_that_were_weighed() -> None:
    drift = input_drift({"request_bytes": 900.0}, QUESTIONS)
    assert drift["input.request_bytes"] == 900
    assert 10 < drift["input.weighed_prompt_bytes"] < 20
    assert input_drift({}, QUESTIONS) == {}
