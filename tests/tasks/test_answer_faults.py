"""Faults of answers: each counted by row, none guessed, and what cannot be told is said."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from weighbridge.tasks.answer_args import AnswerArgs
from weighbridge.tasks.answer_faults import Counted, count
from weighbridge.tasks.candidate_answers import Answers, examples
from weighbridge.tasks.data import Row

SCHEMA = {"type": "object", "required": ["team"], "properties": {"team": {"enum": ["a", "b"]}}}
ASKED = "What is the team that this ticket is for?"


def answered(
    *texts: str,
    reference: str = '{"team": "a"}',
    ends: str = "stop",
    prompt: str = ASKED,
    problems: dict[int, str] | None = None,
) -> Answers:
    rows = [
        Row(prompt=prompt, completion=reference, id=f"row {place}") for place in range(len(texts))
    ]
    said = [(problems or {}).get(place) for place in range(len(texts))]
    return Answers(rows, list(texts), said, [ends] * len(texts))


def having(counted: Counted, fault: str) -> list[float]:
    return counted.scores[fault].per_example


def test_empty_answers_are_those_that_came_without_a_word() -> None:
    counted = count(answered("", " \n", "a", "", problems={3: "HTTP 500"}), AnswerArgs())
    assert having(counted, "empty") == [1, 1, 0, 0]
    assert having(counted, "failed") == [0, 0, 0, 1]
    assert not counted.scores["empty"].greater_is_better
    assert counted.scores["empty"].ids == ["row 0", "row 1", "row 2", "row 3"]


def test_truncated_answers_are_those_that_the_engine_cut_off() -> None:
    assert having(count(answered("a", ends="length"), AnswerArgs()), "truncated") == [1]
    assert having(count(answered("a"), AnswerArgs()), "truncated") == [0]
    silent = count(answered("a", ends=""), AnswerArgs())
    assert "does not say why" in silent.uncounted["truncated"]


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but I can’t do that", True),
        ("As an AI language model, I have no opinion.", True),
        ("Unfortunately, I am not able to open links.", True),
        ("I cannot assist with this request.", True),
        ("The customer says he is sorry and cannot log in.", False),
        ("I can help with that: reset the router.", False),
        ("Reset it. " * 40 + "I'm sorry, but I can't help with that.", False),
    ],
)
def test_refusals_are_told_by_how_an_answer_begins(answer: str, refuses: bool) -> None:
    assert having(count(answered(answer), AnswerArgs()), "refused") == [refuses]


def test_a_refusal_that_is_asked_for_is_no_fault() -> None:
    refusal = "I'm sorry, but I can't help with that."
    assert having(count(answered(refusal, reference=refusal), AnswerArgs()), "refused") == [0]


def test_refusals_in_another_language_take_patterns_of_their_own() -> None:
    german = {
        "prompt": "Welches Team ist für dieses Ticket zuständig, und wie dringend ist es?",
        "reference": "Das ist ein Fall für die Abteilung für Rechnungen.",
    }
    answers = answered("Das kann ich leider nicht beantworten.", **german)
    assert "give evaluate.answers.refusals" in count(answers, AnswerArgs()).uncounted["refused"]
    args = AnswerArgs(refusals=("kann ich leider nicht",))
    assert having(count(answers, args), "refused") == [1]
    assert "refused" in count(answers, AnswerArgs(refusals=())).uncounted


@pytest.mark.parametrize(
    ("args", "malformed"),
    [
        ({}, [0, 0, 1, 1, 0]),
        ({"format": "json"}, [0, 0, 1, 1, 0]),
        ({"json_schema": SCHEMA}, [0, 1, 1, 1, 1]),
    ],
)
def test_malformed_answers_are_no_json_or_break_the_schema(
    args: dict[str, Any], malformed: list[float]
) -> None:
    answers = answered('{"team": "a"}', '{"team": "c"}', '{"team": "a"', "", '{"who": "a"}')
    assert having(count(answers, AnswerArgs.model_validate(args)), "malformed") == malformed


@pytest.mark.parametrize(("reference", "args"), [("text", {}), ("42", {}), (None, "any")])
def test_no_format_is_held_where_none_is_asked_for(reference: str | None, args: Any) -> None:
    answers = answered("{", reference=reference or '{"team": "a"}')
    counted = count(answers, AnswerArgs(format="any") if args else AnswerArgs())
    assert "malformed" not in counted.scores
    assert "asks for no format" in counted.uncounted["malformed"]


def test_references_that_break_the_schema_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        count(answered("{}", "{}", reference="{}"), AnswerArgs(json_schema=SCHEMA))
    assert "2 of 2 references are not in the format" in caplog.text
    assert "row 0" in caplog.text


@pytest.mark.parametrize("keyword", ["$ref", "$dynamicRef"])
@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/elsewhere.json", "#/$defs/nowhere"])
def test_nothing_that_a_schema_refers_to_is_fetched(keyword: str, reference: str) -> None:
    with pytest.raises(ValidationError, match=f"refers to {re.escape(reference)}, which does not"):
        AnswerArgs(json_schema={"properties": {"team": {keyword: reference}}})
    schema = {"$defs": {"team": SCHEMA}, "$ref": "#/$defs/team"}
    counted = count(answered('{"team": "c"}'), AnswerArgs(json_schema=schema))
    assert having(counted, "malformed") == [1]


def test_a_schema_is_read_of_its_file_and_kept(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    args = AnswerArgs.model_validate({"json_schema": str(tmp_path / "s.json")})
    assert args.json_schema == SCHEMA
    assert AnswerArgs.model_validate_json(args.model_dump_json()) == args


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"json_schema": "/nowhere/s.json"}, "cannot be read: No such file"),
        ({"json_schema": {"type": "nothing"}}, "no JSON schema"),
        ({"refusals": ["("]}, "no regular expression"),
        ({"json_schema": {"$ref": "#"}}, "it refers to itself without end"),
        ({"json_schema": {"allOf": [{"$ref": "#"}]}}, "it refers to itself without end"),
        ({"json_schema": {"items": {"pattern": r"\p{L}+"}}}, "is not a 'regex'"),
    ],
)
def test_what_cannot_be_right_is_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        AnswerArgs.model_validate(given)


def test_schemas_that_are_no_trap_are_taken() -> None:
    tree = {"properties": {"pattern": {"const": {"pattern": "("}}, "below": {"$ref": "#"}}}
    assert AnswerArgs(json_schema=tree).json_schema == tree
    tree = {"$dynamicAnchor": "node", "properties": {"below": {"$dynamicRef": "#node"}}}
    assert AnswerArgs(json_schema=tree).json_schema == tree


def test_an_answer_nested_without_end_is_malformed_and_nothing_worse() -> None:
    tree = {"items": {"$ref": "#"}}
    deep = "[" * 700 + "]" * 700
    counted = count(answered(deep, "[[]]", reference="[]"), AnswerArgs(json_schema=tree))
    assert having(counted, "malformed") == [1, 0]


def test_the_kept_answers_name_their_faults() -> None:
    answers = answered("", '{"team": "a"}')
    kept = list(examples(answers, {}, count(answers, AnswerArgs()).scores))
    assert [row.get("faults") for row in kept] == [["empty", "malformed"], None]


def test_of_no_rows_nothing_is_counted() -> None:
    assert count(answered(), AnswerArgs()) == Counted()
