"""The fine-tuning task: a ticket goes in, a JSON object of team, product and priority comes out."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from .world import HELD_OUT, TRAINING, Combination, Ticket, ticket

TRAIN_ROWS: Final = 4000
EVALUATION_ROWS: Final = 150
"""Rows of the validation and of the test split: half of them on held-out combinations."""


class Message(TypedDict):
    role: str
    content: str


class Row(TypedDict):
    """One line of a split's file."""

    messages: list[Message]


@dataclass(frozen=True)
class Splits:
    """Tickets per split; no text is in two of them, and `train` has no held-out combination."""

    train: tuple[Ticket, ...]
    validation: tuple[Ticket, ...]
    test: tuple[Ticket, ...]

    @property
    def evaluation_texts(self) -> frozenset[str]:
        """Texts that no training, pre-training included, may contain."""
        return frozenset(item.text for item in self.validation + self.test)


def splits(seed: int, train_rows: int = TRAIN_ROWS) -> Splits:
    """Draw all three splits from `seed`. Validation and test halve the held-out combinations
    between them.
    """
    rng = random.Random(f"splits {seed}")
    taken: set[str] = set()
    held_out = rng.sample(HELD_OUT, len(HELD_OUT))
    half = len(held_out) // 2
    seen = EVALUATION_ROWS - half
    validation = _unique(rng, held_out[:half] + rng.sample(TRAINING, seen), taken)
    test = _unique(rng, held_out[half:] + rng.sample(TRAINING, seen), taken)
    train = _unique(rng, rng.choices(TRAINING, k=train_rows), taken)
    return Splits(train, validation, test)


def _unique(
    rng: random.Random, combinations: Iterable[Combination], taken: set[str]
) -> tuple[Ticket, ...]:
    """One new ticket per combination, shuffled; `taken` grows by their texts."""
    made = []
    for combination in combinations:
        item = ticket(rng, combination)
        while item.text in taken:
            item = ticket(rng, combination)
        taken.add(item.text)
        made.append(item)
    rng.shuffle(made)
    return tuple(made)


def answer(item: Ticket) -> str:
    """The JSON that the fine-tuned model should give for `item`."""
    return json.dumps({"team": item.team, "product": item.product, "priority": item.priority})


def rows(tickets: Iterable[Ticket]) -> Iterator[Row]:
    for item in tickets:
        user: Message = {"role": "user", "content": item.text}
        assistant: Message = {"role": "assistant", "content": answer(item)}
        yield {"messages": [user, assistant]}


def write(folder: Path, drawn: Splits) -> None:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl` into a new `folder`."""
    folder.mkdir()
    for name, tickets in (
        ("train", drawn.train),
        ("validation", drawn.validation),
        ("test", drawn.test),
    ):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(tickets))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
