"""Data: whatever rows a user has -> canonical prompt/completion rows in train, validation and test.

The canonical data artifact has format `jsonl` and holds `train.jsonl`, `validation.jsonl` and
`test.jsonl`; every line is one `Row`. A row is a chat (lists of messages) or plain text, all rows
of one artifact alike.
"""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.tasks.sources.uri import Location

Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
FORMATS: Final = ("jsonl", "json", "csv", "parquet")

Columns = Mapping[str, Any]
"""One row as the user has it."""


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field(min_length=1, description="`system`, `user` or `assistant`.")
    content: str


class Row(BaseModel):
    """One example: what the model is asked, and what it should answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: list[Message] | str = Field(min_length=1)
    completion: list[Message] | str = Field(min_length=1)

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
    reader = _RowReader(args.columns)
    splits = {
        split: [row for name, path in files[split] for row in _rows(name, path, reader)]
        for split in files
    }
    _cut_off(splits, args)
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

    def __init__(self, mapped: ColumnMapping | None) -> None:
        self._mapped = mapped
        self._form = ""

    def row(self, where: str, columns: Columns) -> Row:
        """Return one canonical row. Raises BadInput, naming the place, for other columns."""
        form = "mapped columns" if self._mapped else _recognize(where, columns)
        self._form = self._form or form
        if form != self._form:
            wrong = f"it has {form}, the rows before have {self._form}"
            raise BadInput(f"reading {where}", wrong, "use one form throughout")
        try:
            return Row.model_validate(
                _from_columns(columns, self._mapped) if self._mapped else MAKERS[form](columns)
            )
        except KeyError as exc:
            wrong = f"there is no column '{exc.args[0]}'"
            raise BadInput(
                f"reading {where}", wrong, f"there are: {', '.join(columns) or 'none'}"
            ) from exc
        except ValidationError as exc:
            raise BadInput(f"reading {where}", _first_problem(exc)) from exc
        except ValueError as exc:
            raise BadInput(f"reading {where}", str(exc)) from exc


def _recognize(where: str, columns: Columns) -> str:
    if "messages" in columns:
        return "messages"
    if "prompt" in columns and "completion" in columns:
        return (
            f"prompt and completion as {'text' if isinstance(columns['prompt'], str) else 'chat'}"
        )
    available = ", ".join(columns) or "none"
    raise BadInput(
        f"reading {where}",
        f"neither `messages` nor `prompt` and `completion` are among its columns: {available}",
        "map them under data.columns",
    )


def _as_it_is(columns: Columns) -> dict[str, Any]:
    prompt, completion = columns["prompt"], columns["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError("prompt and completion must both be text, or both be lists of messages")
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": completion}
    return {"prompt": _messages(prompt), "completion": _messages(completion)}


def _from_messages(columns: Columns) -> dict[str, Any]:
    """Take the last turn as the completion and all before it as the prompt."""
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


def _messages(value: Any) -> list[dict[str, Any]]:
    """Return messages without keys whose value is None: columnar files fill absent keys with it."""
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise ValueError("messages must be a list of objects with role and content")
    return [{key: item for key, item in message.items() if item is not None} for message in value]


def _from_columns(columns: Columns, mapped: ColumnMapping) -> dict[str, Any]:
    prompt, completion = _fill(mapped.prompt, columns), _fill(mapped.completion, columns)
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
    return "".join(
        literal + ("" if field is None else _text(columns[field]))
        for literal, field in _fields(template)
    )


def _text(value: Any) -> str:
    if value is None:
        raise ValueError("a mapped column is empty")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _first_problem(exc: ValidationError) -> str:
    problem = exc.errors()[0]
    column = ".".join(
        str(part) for part in problem["loc"] if not str(part).startswith(("list[", "str"))
    )
    return f"{column}: {problem['msg']}"


def read_columns(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a data file, with words that say where it stands.

    Raises:
        BadInput: the file is not what its ending says, or a row is not an object.
    """
    readers = {"jsonl": _read_jsonl, "json": _read_json, "csv": _read_csv, "parquet": _read_parquet}
    try:
        yield from readers[PurePosixPath(name).suffix.removeprefix(".")](name, path)
    except UnicodeDecodeError as exc:
        raise BadInput(
            f"reading {name}", f"it is not UTF-8 text: {exc.reason} at byte {exc.start}"
        ) from exc


def _read_jsonl(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:  # Notepad and Excel write a byte order mark
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as exc:
                raise BadInput(f"reading {where}", f"it is not JSON: {exc}") from exc
            yield where, _object(where, row)


def _read_json(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:  # a ValueError, too, of which read_columns tells better
        raise
    except ValueError as exc:
        raise BadInput(f"reading {name}", f"it is not JSON: {exc}") from exc
    if not isinstance(rows, list):
        raise BadInput(
            f"reading {name}", "it is not a list of rows", "for one row a line, name it .jsonl"
        )
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        yield where, _object(where, row)


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(
            f"reading {where}", f"it is a {type(row).__name__}, not an object with columns"
        )
    return row


def _read_csv(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as stream:  # cells hold line breaks
        rows = csv.DictReader(stream, strict=True)
        try:
            for number, row in enumerate(rows, start=1):
                where = f"{name}, row {number}"
                if None in row or None in row.values():
                    raise BadInput(
                        f"reading {where}",
                        f"it has not the header's {len(rows.fieldnames or [])} columns",
                    )
                yield where, row
        except csv.Error as exc:
            raise BadInput(
                f"reading {name}, line {rows.line_num + 1}", f"it is not CSV: {exc}"
            ) from exc


def _read_parquet(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}, row {number}", row
    except pa.ArrowException as exc:
        raise BadInput(f"reading {name}", f"it is not Parquet: {exc}") from exc
