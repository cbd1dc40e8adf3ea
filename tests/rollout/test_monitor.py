"""Monitoring: a fall below the floor counts when it is proven, and is acted on when it comes twice
in a row.
"""

import pytest

from tests.stand_ins.openai import Behaviour, serve
from tests.tasks.made import exact, measured
from weighbridge.rollout.monitor import MonitorCheck, check, has_fallen
from weighbridge.rollout.probe import ProbeQuestion
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
        assert check(server.url, measurement, QUESTIONS, floor).verdict == verdict


def test_a_model_that_was_measured_below_the_floor_is_left_alone_while_it_does_not_fall(
    measurement: Measurement,
) -> None:
    with serve(Behaviour(answers=KNOWN)) as server:
        assert check(server.url, measurement, QUESTIONS, 0.99).verdict == "pass"


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
