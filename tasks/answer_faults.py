"""Faults of answers that no reference is needed for: counted of every row, for each candidate.

A fault is a score like others: 1 for a row that has it, else 0, with the share and its interval.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from weighbridge.tasks.answer_args import AnswerArgs
from weighbridge.tasks.candidate_answers import Answers
from weighbridge.tasks.data import Row
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.metrics.intervals import mean_score
from weighbridge.tasks.metrics.rows.json_fields import UNPARSABLE, parse
from weighbridge.tasks.refusals import ENGLISH, is_refusal, look_english, matcher
from weighbridge.tasks.scoring import of_rows

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

logger = logging.getLogger(__name__)

Fault = Literal["failed", "empty", "truncated", "refused", "malformed"]
FAULTS: Final[Mapping[Fault, str]] = {
    "failed": "no answer: the engine gave an error",
    "empty": "nothing but white space",
    "truncated": "cut off at evaluate.max_new_tokens or the end of the context",
    "refused": "declines to answer, where its reference does not",
    "malformed": "not the JSON that is asked for",
}


@dataclass(frozen=True)
class Counted:
    """What was counted of one split's answers."""

    scores: dict[str, Score] = field(default_factory=dict)
    """By fault: the share of rows that have it."""
    uncounted: dict[str, str] = field(default_factory=dict)
    """By fault: why it could not be told."""


def count(answers: Answers, args: AnswerArgs) -> Counted:
    """Return the share of answers with each fault, and why one could not be told."""
    if not answers.rows:
        return Counted()
    tests = _tests(answers, args)
    scores = {
        fault: of_rows(_share(answers, has), answers.rows)
        for fault, has in tests.items()
        if not isinstance(has, str)
    }
    return Counted(scores, {fault: why for fault, why in tests.items() if isinstance(why, str)})


Has = Callable[[int], bool]
"""Whether the answer at this place has the fault."""


def _share(answers: Answers, has: Has) -> Score:
    rows = [float(has(place)) for place in range(len(answers.rows))]
    return mean_score(rows, greater_is_better=False)


def _tests(answers: Answers, args: AnswerArgs) -> dict[str, Has | str]:
    def failed(place: int) -> bool:
        return answers.problems[place] is not None

    def empty(place: int) -> bool:
        return not failed(place) and not answers.texts[place].strip()

    return {
        "failed": failed,
        "empty": empty,
        "truncated": _truncated(answers),
        "refused": _refused(answers, args),
        "malformed": _malformed(answers, args),
    }


def _truncated(answers: Answers) -> Has | str:
    if not any(answers.ends):
        return "the engine does not say why an answer ends"
    return lambda place: answers.ends[place] == "length"


def _refused(answers: Answers, args: AnswerArgs) -> Has | str:
    if args.refusals == ():
        return "the recipe gives no patterns of refusals"
    if args.refusals is None and not look_english(map(_text, answers.rows)):
        return "the rows are not English: give evaluate.answers.refusals for their language"
    refusals = matcher(ENGLISH if args.refusals is None else args.refusals)

    def refused(place: int) -> bool:
        # Where a refusal is what is asked for, it is no fault.
        reference = answers.rows[place].reference
        return is_refusal(answers.texts[place], refusals) and not is_refusal(reference, refusals)

    return refused


def _text(row: Row) -> str:
    prompt = row.prompt
    said = prompt if isinstance(prompt, str) else " ".join(turn.content for turn in prompt)
    return f"{said} {row.reference}"


def _malformed(answers: Answers, args: AnswerArgs) -> Has | str:
    if args.format == "any" and args.json_schema is None:
        return "the recipe asks for no format"
    if args.format == "auto" and args.json_schema is None and not _are_json(answers.rows):
        return "the references are not JSON, and the recipe asks for no format"
    validator = _validator(args.json_schema)
    _tell_of_references(answers.rows, validator)
    return lambda place: not _keeps(answers.texts[place], validator)


def _are_json(rows: Sequence[Row]) -> bool:
    return all(isinstance(parse(row.reference), dict | list) for row in rows)


def _validator(schema: dict[str, Any] | None) -> Validator | None:
    if schema is None:
        return None
    from jsonschema.validators import validator_for
    from referencing import Registry

    # An empty registry: without one, what a schema refers to elsewhere would be fetched.
    validator: Validator = validator_for(schema)(schema, registry=Registry())
    return validator


def _keeps(text: str, validator: Validator | None) -> bool:
    value = parse(text)
    try:
        return value is not UNPARSABLE and (validator is None or validator.is_valid(value))
    # A model that repeats itself may nest hundreds of lists.
    except RecursionError:
        return False


def _tell_of_references(rows: Sequence[Row], validator: Validator | None) -> None:
    broken = [row.id for row in rows if not _keeps(row.reference, validator)]
    if broken:
        logger.warning(
            "%d of %d references are not in the format that answers are asked for, the first with "
            "id %s: the rows teach something else than evaluate.answers says",
            len(broken),
            len(rows),
            broken[0],
        )
