"""Data: whatever rows a user has -> canonical prompt/completion rows in train, validation and test.

The canonical data artifact has format `jsonl` and holds `train.jsonl`, `validation.jsonl` and
`test.jsonl`; every line is one `Row`. A row is a chat (lists of messages) or plain text, all rows
of one artifact alike.
"""

from __future__ import annotations

import logging
import math
import random
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, field_validator

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.tasks.column_text import text_of_value
from weighbridge.tasks.data_files import READERS, read_columns
from weighbridge.tasks.sources.uri import Location

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
FORMATS: Final = tuple(READERS)
NOT_PASSED_ON: Final = (
    *("tools", "functions", "function_call", "documents", "chat_template_kwargs", "system"),
    *("image", "images", "audio", "audios", "video", "videos"),
)
"""Columns beside a chat that change what a model reads, and that no row of ours can hold."""

logger = logging.getLogger(__name__)

Columns = Mapping[str, Any]
"""One row as the user has it."""


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

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

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
        list(_fields(template))
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


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write canonical rows, one JSON object a line."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(row.model_dump_json() + "\n" for row in rows)


def prepare(
    files: Mapping[Split, list[tuple[str, Path]]], args: DataArgs, out: Path
) -> dict[Split, int]:
    """Write the three canonical files into `out`; return the number of rows of each.

    `files` gives, per split that the source has, the name and the local copy of each file.

    Raises:
        BadInput: a file is empty or unreadable, or a row has not the shape of the first one.
    """
    reader = _RowReader(args)
    splits = {
        split: [row for name, path in files[split] for row in _rows(name, path, reader)]
        for split in files
    }
    _cut_off(splits, args)
    if args.train_on == "all":
        splits["train"] = [turn for row in splits["train"] for turn in _each_turn(row)]
    else:
        _tell_of_other_turns(splits["train"])
    for split in SPLITS:
        write_rows(splits[split], out / f"{split}.jsonl")
    return {split: len(splits[split]) for split in SPLITS}


def _rows(name: str, path: Path, reader: _RowReader) -> list[Row]:
    rows = [reader.row(where, columns) for where, columns in read_columns(name, path)]
    if not rows:
        raise BadInput(
            f"reading {name}", "it holds no rows", "give a file with at least one example"
        )
    return rows


def _each_turn(row: Row) -> list[Row]:
    """Return one row for each turn of the assistant that something was said before."""
    if isinstance(row.prompt, str) or isinstance(row.completion, str):
        return [row]
    messages = [*row.prompt, *row.completion]
    return [
        Row(prompt=messages[:index], completion=[message])
        for index, message in enumerate(messages)
        if index and message.role == "assistant"
    ]


def _tell_of_other_turns(train: Sequence[Row]) -> None:
    """Warn where chats hold answers that are not learned."""
    several = sum(
        any(message.role == "assistant" for message in row.prompt if not isinstance(message, str))
        for row in train
    )
    if several:
        logger.warning(
            "of %d of %d chats in train only the assistant's last turn is learned; "
            "data.train_on: all learns every one",
            several,
            len(train),
        )


def _cut_off(splits: dict[Split, list[Row]], args: DataArgs) -> None:
    """Move rows from train into the splits that are missing; equal prompts stay together."""
    fractions: dict[Split, float] = {
        "validation": args.validation_fraction,
        "test": args.test_fraction,
    }
    missing: list[Split] = [split for split in ("validation", "test") if split not in splits]
    if not missing:
        return
    train = splits["train"]
    keys = [row.model_dump_json(include={"prompt"}) for row in train]
    prompts = list(dict.fromkeys(keys))  # a set has another order in every process
    if len(prompts) <= len(missing):
        wrong = (
            f"{len(prompts)} different prompts in train are too few to cut "
            f"{' and '.join(missing)} off"
        )
        raise BadInput("splitting the data", wrong, "give more rows, or files for these splits")
    random.Random(args.seed).shuffle(prompts)
    most = (len(prompts) - 1) // len(missing)  # train keeps one prompt at least
    split_of: dict[str, Split] = {}
    for split in missing:
        count = min(math.ceil(len(prompts) * fractions[split]), most)
        taken, prompts = prompts[:count], prompts[count:]
        split_of.update(dict.fromkeys(taken, split))
    for split in ("train", *missing):
        splits[split] = [
            row for row, key in zip(train, keys, strict=True) if split_of.get(key, "train") == split
        ]


class _RowReader:
    """Turns columns into rows, and holds every row to the form of the first."""

    def __init__(self, args: DataArgs) -> None:
        self._mapped = args.columns
        self._every_turn = args.train_on == "all"
        self._form = ""

    def row(self, where: str, columns: Columns) -> Row:
        """Return one canonical row. Raises BadInput, naming the place, for other columns."""
        form = "mapped columns" if self._mapped else _recognize(where, columns)
        self._form = self._form or form
        if form != self._form:
            wrong = f"it has {form}, the rows before have {self._form}"
            raise BadInput(f"reading {where}", wrong, "use one form throughout")
        try:
            made = _from_columns(columns, self._mapped) if self._mapped else MAKERS[form](columns)
            row = Row.model_validate(made)
            for turn in _each_turn(row) if self._every_turn else [row]:
                _refuse_no_text(turn)
        except KeyError as exc:
            wrong = f"there is no column '{exc.args[0]}'"
            raise BadInput(f"reading {where}", wrong, f"there are: {_names(columns)}") from exc
        except ValidationError as exc:
            raise BadInput(f"reading {where}", _first_problem(exc)) from exc
        except ValueError as exc:
            raise BadInput(f"reading {where}", str(exc)) from exc
        return row


def _names(columns: Columns) -> str:
    # Half a surrogate pair in a name could not be printed.
    return ", ".join(columns).encode(errors="backslashreplace").decode() or "none"


def _refuse_no_text(row: Row) -> None:
    """Raise ValueError for a row that asks nothing, answers nothing, or is no Unicode text."""
    prompt = [row.prompt] if isinstance(row.prompt, str) else [m.content for m in row.prompt]
    answers = (
        [row.completion]
        if isinstance(row.completion, str)
        else [message.content for message in row.completion]
    )
    try:
        "".join((*prompt, *answers)).encode()
    except UnicodeEncodeError as exc:
        half = ascii(exc.object[exc.start])
        raise ValueError(f"it holds {half}, which is half of a character") from exc
    if not any(text.strip() for text in prompt):
        raise ValueError("prompt: it is empty")
    if not all(answer.strip() for answer in answers):
        raise ValueError("completion: the answer is empty")


def _recognize(where: str, columns: Columns) -> str:
    if "messages" in columns:
        return "messages"
    if "prompt" in columns and "completion" in columns:
        return (
            f"prompt and completion as {'text' if isinstance(columns['prompt'], str) else 'chat'}"
        )
    raise BadInput(
        f"reading {where}",
        "neither `messages` nor `prompt` and `completion` are among its columns: "
        f"{_names(columns)}",
        "map them under data.columns",
    )


def _as_it_is(columns: Columns) -> dict[str, Any]:
    _refuse_not_passed_on(columns)
    prompt, completion = columns["prompt"], columns["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError("prompt and completion must both be text, or both be lists of messages")
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": completion}
    return {"prompt": _messages(prompt), "completion": _messages(completion)}


def _from_messages(columns: Columns) -> dict[str, Any]:
    """Take the last turn as the completion and all before it as the prompt."""
    _refuse_not_passed_on(columns)
    messages = _messages(columns["messages"])
    if len(messages) < 2 or messages[-1].get("role") != "assistant":
        raise ValueError("messages must be at least two, and the last one the assistant's")
    return {"prompt": messages[:-1], "completion": messages[-1:]}


MAKERS: Final[Mapping[str, Callable[[Columns], dict[str, Any]]]] = {
    "messages": _from_messages,
    "prompt and completion as text": _as_it_is,
    "prompt and completion as chat": _as_it_is,
}
"""By the names that `_recognize` gives."""


def _refuse_not_passed_on(columns: Columns) -> None:
    for name in NOT_PASSED_ON:
        if columns.get(name) not in (None, "", [], {}):
            raise ValueError(
                f"its `{name}` would not reach the model: leave the column out, or write what "
                "matters of it into the prompt"
            )


def _messages(value: Any) -> list[dict[str, Any]]:
    """Return messages without keys whose value is None: columnar files fill absent keys with it."""
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError("messages must be a list of objects with role and content")
    return [{key: item for key, item in message.items() if item is not None} for message in value]


def _from_columns(columns: Columns, mapped: ColumnMapping) -> dict[str, Any]:
    prompt, completion = _fill(mapped.prompt, columns), _fill(mapped.completion, columns)
    answered_by = [columns[field] for _, field in _fields(mapped.completion) if field is not None]
    # A CSV file has nothing but empty text to say that a value is missing.
    if answered_by and not any(str(value).strip() for value in answered_by):
        raise ValueError("completion: the answer is empty")
    system = _fill(mapped.system, columns)
    if not mapped.chat:
        return {"prompt": f"{system}\n{prompt}" if system else prompt, "completion": completion}
    first_turns = [{"role": "system", "content": system}] if system else []
    return {
        "prompt": [*first_turns, {"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def _fields(template: str) -> Iterator[tuple[str, str | None]]:
    for literal, field, spec, conversion in string.Formatter().parse(template):
        if spec or conversion or field == "":
            raise ValueError(f"in '{template}': only {{column}} is possible between braces")
        yield literal, field


def _fill(template: str, columns: Columns) -> str:
    parts = []
    for literal, field in _fields(template):
        try:
            parts += [literal, "" if field is None else text_of_value(columns[field])]
        except ValueError as exc:
            raise ValueError(f"the mapped column '{field}' {exc}") from exc
    return "".join(parts)


def _first_problem(exc: ValidationError) -> str:
    problem = exc.errors()[0]
    column = ".".join(
        str(part) for part in problem["loc"] if not str(part).startswith(("list[", "str"))
    )
    return f"{column}: {problem['msg']}"
