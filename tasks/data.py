"""Data: whatever rows a user has -> canonical prompt/completion rows in train, validation and test.

The canonical data artifact has format `jsonl` and holds `train.jsonl`, `validation.jsonl` and
`test.jsonl`; every line is one `Row`. A row is a chat (lists of messages) or plain text, all rows
of one artifact alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator

from weighbridge.core.artifact import Artifact
from weighbridge.tasks.column_text import fields_of
from weighbridge.tasks.data_files import READERS
from weighbridge.tasks.sources.uri import Location

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
FORMATS: Final = tuple(READERS)


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Strict: bytes would be taken for text.
    role: StrictStr = Field(min_length=1, description="`system`, `user` or `assistant`.")
    content: StrictStr


class Row(BaseModel):
    """One example: what the model is asked, and what it should answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: list[Message] | StrictStr = Field(min_length=1)
    completion: list[Message] | StrictStr = Field(min_length=1)
    id: StrictStr = Field("", description="Of the column that `data.id` names.")
    cluster: StrictStr = Field("", description="Of the column that `data.cluster` names.")
    slice: StrictStr = Field("", description="Of the column that `data.slice` names.")

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    @property
    def question(self) -> str:
        """The text that is asked, with who says what where there are several turns."""
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) == 1:
            return self.prompt[0].content
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.prompt)

    @property
    def reference(self) -> str:
        """The text that an answer is compared with."""
        if isinstance(self.completion, str):
            return self.completion
        return "\n".join(message.content for message in self.completion)


class ColumnMapping(BaseModel):
    """How columns become a row: templates in which `{column}` stands for the column's value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(
        min_length=1,
        description="What the user says: `Ticket: {text}`. Literal braces are doubled.",
    )
    completion: str = Field(min_length=1, description="What the model should answer: `{label}`.")
    system: str = Field("", description="System message before the prompt; empty: none.")
    chat: bool = Field(
        True, description="Make chat messages; off: plain text without a chat template."
    )

    @field_validator("prompt", "completion", "system")
    @classmethod
    def _is_template(cls, template: str) -> str:
        """Refuse a template with an open brace: reading its fields fails then."""
        list(fields_of(template))
        return template


class DataArgs(BaseModel):
    """Where the examples are and how they become prompts and completions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Location = Field(description="A URI (file, hf, s3) or a source's arguments.")
    train: str = Field(
        "train.jsonl", min_length=1, description="File or pattern within the source."
    )
    validation: str = Field(
        "", description="File or pattern that choices are made on; empty: cut off train."
    )
    test: str = Field(
        "", description="File or pattern that no choice is made on; empty: cut off train."
    )
    validation_fraction: float = Field(
        0.05, gt=0, lt=0.5, description="Part of train, where validation is cut off."
    )
    test_fraction: float = Field(
        0.05, gt=0, lt=0.5, description="Part of train, where test is cut off."
    )
    seed: int = Field(0, ge=0, description="Of the choice which rows are cut off train.")
    train_on: Literal["last", "all"] = Field(
        "last",
        description="Which turns of the assistant are learned: the last of each chat, or all of "
        "them, each after the turns before it. Validation and test ask for the last.",
    )
    columns: ColumnMapping | None = Field(
        None, description="Templates over columns, where rows are in no form we know."
    )
    id: str = Field(
        "",
        description="Column that names each row, no two alike; empty: rows go by what they ask and "
        "answer.",
    )
    cluster: str = Field(
        "",
        description="Column of what rows belong to: a document, a customer, a template. Rows of "
        "one cluster are not independent evidence, and stay in one split where splits are cut off. "
        "Empty: each row stands by itself.",
    )
    slice: str = Field(
        "",
        description="Column of a kind of row that quality is to be told of by itself: a language, "
        "a product, a kind of question. Empty: of all rows together alone.",
    )
    shared_rows: Literal["refuse", "drop", "keep"] = Field(
        "refuse",
        description="What to do with rows of test that are in train or validation as well: refuse "
        "them, drop them from test, or keep them, which makes its scores better than they are.",
    )

    @field_validator("train", "validation", "test")
    @classmethod
    def _has_known_format(cls, pattern: str) -> str:
        if pattern and PurePosixPath(pattern).suffix.removeprefix(".") not in FORMATS:
            raise ValueError(f"must end in one of: {', '.join(f'.{name}' for name in FORMATS)}")
        return pattern

    def pattern(self, split: Split) -> str:
        patterns: dict[Split, str] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        return patterns[split]


def read_rows(data: Artifact, split: Split, most: int | None = None) -> list[Row]:
    """Return the rows of one split of a canonical data artifact, or the first `most` of them."""
    with (data.path / f"{split}.jsonl").open(encoding="utf-8") as stream:
        return [Row.model_validate_json(line) for line in islice(stream, most)]


def content(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Return what identifies rows: what they ask and answer, and go by; not their slices, which
    change nothing about them.
    """
    return [row.model_dump(mode="json", exclude={"slice"}) for row in rows]


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write canonical rows, one JSON object a line."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(row.model_dump_json(exclude_defaults=True) + "\n" for row in rows)
