"""Probe questions: a version that answers as when it was weighed passes, garbage does not."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.openai import Behaviour, serve
from tests.tasks.made import exact, measured, nll
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import probe
from weighbridge.rollout.probe import ProbeAnswer, ProbeQuestion
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.shipped import ExactMatchArgs

ROWS = 50
KNOWN = {f"what is {n} doubled": f"it is {2 * n}" for n in range(ROWS)}


@pytest.fixture
def measurement(tmp_path: Path, workspace: Workspace) -> Measurement:
    """Of a model that knows all answers but the last five, and refused the very last question."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for index, (question, answer) in enumerate(KNOWN.items()):
        right = index < ROWS - 5
        prompt = question if index % 2 else [{"role": "user", "content": question}]
        row = {"prompt": prompt, "reference": answer, "answer": answer if right else "no idea"}
        rows.append({**row, "scores": {"exact_match": float(right), "nll": 0.1}})
    rows[-1]["problem"] = "HTTP 400"
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = workspace.store.add(folder, "jsonl")
    scores = {"nll": nll(0.1), "exact_match": exact(ROWS - 5, ROWS)}
    return measured("model").model_copy(update={"predictions": kept, "scores": scores})


@pytest.fixture
def questions(measurement: Measurement, workspace: Workspace) -> list[ProbeQuestion]:
    return probe.questions_of(measurement, workspace.store, 16)


def answers_by(
    questions: list[ProbeQuestion], answer: Callable[[int, ProbeQuestion], str]
) -> list[ProbeAnswer]:
    return [
        ProbeAnswer(question=question, text=answer(index, question))
        for index, question in enumerate(questions)
    ]


def test_questions_are_spread_over_the_measured_rows(
    measurement: Measurement, workspace: Workspace
) -> None:
    some = probe.questions_of(measurement, workspace.store, 7)
    assert [question.reference for question in some] == [
        f"it is {2 * n}" for n in (0, 7, 14, 21, 28, 35, 42)
    ]
    everything = probe.questions_of(measurement, workspace.store, 500)
    assert len(everything) == ROWS - 1  # the one that was refused is none
    assert everything[1].prompt == "what is 1 doubled"
    assert everything[0].prompt == [{"role": "user", "content": "what is 0 doubled"}]


def test_what_ends_a_line_elsewhere_ends_no_row(tmp_path: Path, workspace: Workspace) -> None:
    text = "first\u2028second\u0085third"
    row = {"prompt": text, "reference": text, "answer": text, "scores": {}}
    (tmp_path / "rows").mkdir()
    # As they are kept: with every character but those that JSON must escape.
    line = json.dumps(row, ensure_ascii=False) + "\n"
    (tmp_path / "rows" / "validation.jsonl").write_text(line, encoding="utf-8")
    kept = workspace.store.add(tmp_path / "rows", "jsonl")
    made = measured("model").model_copy(update={"predictions": kept})
    (question,) = probe.questions_of(made, workspace.store, 5)
    assert question.prompt == text


def test_there_are_none_where_the_predictions_are_not(
    measurement: Measurement, workspace: Workspace
) -> None:
    assert probe.questions_of(measured("unmeasured"), workspace.store, 5) == []
    assert measurement.predictions
    workspace.store.remove(measurement.predictions.digest)
    assert probe.questions_of(measurement, workspace.store, 5) == []
    assert probe.judge([], measurement, max_drop=0.02).verdict == "inconclusive"


def test_the_same_model_passes(measurement: Measurement, questions: list[ProbeQuestion]) -> None:
    with serve(Behaviour(answers=KNOWN)) as server:
        answered = probe.ask(server.url, questions)
        assert len(server.seen) == len(questions)
        assert {body["max_tokens"] for body in server.seen} == {128}
    assert [one.text for one in answered] == [question.reference for question in questions]
    judgement = probe.judge(answered, measurement, max_drop=0.02)
    assert judgement.verdict == "pass"
    assert judgement.evidence["questions"] == 16


@pytest.mark.parametrize("garbage", ["", "�� the the the the"])
def test_garbage_fails(
    measurement: Measurement, questions: list[ProbeQuestion], garbage: str
) -> None:
    with serve(Behaviour(default=garbage)) as server:
        answered = probe.ask(server.url, questions)
    judgement = probe.judge(answered, measurement, max_drop=0.02)
    assert (judgement.verdict, judgement.evidence["drop"]) == (
        "fail",
        pytest.approx(14 / 16, abs=0.07),
    )
    assert "the score fell by" in judgement.why


def test_garbage_fails_where_no_metric_tells(
    measurement: Measurement, questions: list[ProbeQuestion]
) -> None:
    known = answers_by(questions, lambda _, question: question.answer)
    wrong = answers_by(questions, lambda *_: "garbage")
    weak = measurement.model_copy(update={"scores": {}})
    assert probe.judge(known, weak, max_drop=0.02).verdict == "pass"
    assert probe.judge(wrong, weak, max_drop=0.02).verdict == "fail"
    # A model that never was right cannot fall: it is its words that count.
    never = [
        question.model_copy(update={"scores": {"exact_match": 0.0}, "answer": "no idea"})
        for question in questions
    ]
    assert (
        probe.judge(answers_by(never, lambda *_: "no idea"), measurement, max_drop=0.02).verdict
        == "pass"
    )
    assert (
        probe.judge(answers_by(never, lambda *_: "garbage"), measurement, max_drop=0.02).verdict
        == "fail"
    )


def test_one_answer_that_changed_is_no_reason_and_several_are_doubt(
    measurement: Measurement, questions: list[ProbeQuestion]
) -> None:
    for wrong, verdict in ((1, "pass"), (5, "inconclusive"), (12, "fail")):
        answers = answers_by(
            questions,
            lambda index, question, wrong=wrong: "x" if index < wrong else question.answer,
        )
        assert probe.judge(answers, measurement, max_drop=0.02).verdict == verdict


def test_scores_taken_with_other_options_are_not_compared(
    measurement: Measurement, questions: list[ProbeQuestion]
) -> None:
    """White space and capitals count as the recipe says; the measurement holds labels alone."""
    shouted = [
        question.model_copy(
            update={"answer": question.reference.upper(), "scores": {"exact_match": 1.0}}
        )
        for question in questions
    ]
    answered = answers_by(shouted, lambda _, question: question.reference.title())
    assert "changed" in probe.judge(answered, measurement, max_drop=0.02).why
    judgement = probe.judge(
        answered, measurement, max_drop=0.02, metrics=[ExactMatchArgs(ignore_case=True)]
    )
    assert (judgement.verdict, judgement.evidence["drop"]) == ("pass", 0.0)


def test_the_pin_goes_with_every_request(questions: list[ProbeQuestion]) -> None:
    with serve() as server:
        probe.ask(server.url, questions, headers={"X-Weighbridge-Version": "7"}, max_tokens=3)
        assert [headers["X-Weighbridge-Version"] for headers in server.headers] == ["7"] * len(
            server.headers
        )
        assert len(server.headers) > len(questions)
        assert {body["max_tokens"] for body in server.seen} == {3}


def test_no_answer_is_an_error_and_nobody_waits_for_the_rest(
    measurement: Measurement, questions: list[ProbeQuestion]
) -> None:
    started = time.monotonic()
    with serve(Behaviour(answers=KNOWN, first_delay=3.0)) as server:
        hanging = probe.ask(server.url, questions, timeout=0.3)
    assert time.monotonic() - started < 3
    with serve(Behaviour(answers=KNOWN, error_every=4)) as server:
        refusing = probe.ask(server.url, questions, concurrency=1)
        assert len(server.seen) == 4
    for answered in (hanging, refusing, probe.ask("http://127.0.0.1:9", questions)):
        assert len(answered) == len(questions)
        assert probe.judge(answered, measurement, max_drop=0.02).verdict == "error"


def test_what_is_garbage_fails_even_if_it_dies_later(
    measurement: Measurement, questions: list[ProbeQuestion]
) -> None:
    answered = answers_by(questions, lambda *_: "garbage")
    answered[-1] = ProbeAnswer(question=questions[-1], problem="it broke off")
    assert probe.judge(answered, measurement, max_drop=0.02).verdict == "fail"
