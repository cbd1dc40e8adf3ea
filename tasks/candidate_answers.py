"""What a candidate's engine answered, and the examples that are kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from weighbridge.tasks.candidate_likelihoods import Likelihoods
from weighbridge.tasks.data import Row
from weighbridge.tasks.metrics.base import Score


@dataclass(frozen=True)
class Answers:
    """What the engine said to one split's rows."""

    rows: list[Row]
    texts: list[str]
    problems: list[str | None]
    """Why there is no answer, by row; None where there is one."""
    ends: list[str]
    """Why each answer ended, as the engine says: `stop`, `length`; empty where it does not."""
    likelihoods: Likelihoods = field(default_factory=Likelihoods)
    """Of the references' tokens."""


def examples(
    answers: Answers, scores: Mapping[str, Score], faults: Mapping[str, Score]
) -> Iterator[dict[str, Any]]:
    """Yield every row with its answer, its score by every metric that scores rows, and the names
    of the faults that the answer has.
    """
    for number, row in enumerate(answers.rows):
        example = {
            "id": row.id,
            "prompt": row.model_dump()["prompt"],
            "reference": row.reference,
            "answer": answers.texts[number],
        }
        if row.slice:
            example["slice"] = row.slice
        if (problem := answers.problems[number]) is not None:
            example["problem"] = problem
        example["scores"] = {
            name: score.per_example[number] for name, score in scores.items() if score.per_example
        }
        if found := [name for name, fault in faults.items() if fault.per_example[number]]:
            example["faults"] = found
        yield example
