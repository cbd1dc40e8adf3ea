"""A row as a user has it -> a canonical row, or a refusal that says where it stands."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from pydantic import ValidationError

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import with_escapes
from weighbridge.tasks.column_text import fields_of, text_of_value
from weighbridge.tasks.data import ColumnMapping, DataArgs, Message, Row

NOT_PASSED_ON: Final = (
    *("tools", "functions", "function_call", "documents", "chat_template_kwargs", "system"),
    *("image", "images", "audio", "audios", "video", "videos"),
)
"""Columns beside a chat that change what a model reads, and that no row of ours can hold."""

ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
"""Of OpenAI's protocol. Templates may know others, such as Llama 3's `ipython`."""
MISTAKEN_ROLES: Final = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Other formats' names of them: clients would ask in another role than was learned."""
INVISIBLE: Final = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Categories of Unicode: control, format, and every kind of space."""
NAMES_TOLD: Final = 20
Columns = Mapping[str, Any]
"""One row as the user has it."""


class RowReader:
    """Turns columns into rows, and holds every row to the form of the first."""

    def __init__(self, args: DataArgs) -> None:
        self._mapped = args.columns
        self._every_turn = args.train_on == "all"
        self._names = {"id": args.id, "cluster": args.cluster, "slice": args.slice}
        self.form = ""
        """What the rows have, by the first of them: `messages`, mapped columns, …"""

    def row(self, where: str, columns: Columns) -> Row:
        """Return one canonical row. Raises BadInput, naming the place, for other columns."""
        form = "mapped columns" if self._mapped else _recognize(where, columns)
        self.form = self.form or form
        if form != self.form:
            wrong = f"it has {form}, the rows before have {self.form}"
            raise BadInput(f"reading {where}", wrong, "use one form throughout")
        try:
            made = _from_columns(columns, self._mapped) if self._mapped else MAKERS[form](columns)
            row = Row.model_validate({**made, **self._named(columns)})
            for turn in each_turn(row) if self._every_turn else [row]:
                _refuse_no_text(turn)
        except KeyError as exc:
            wrong = f"there is no column '{with_escapes(exc.args[0])}'"
            raise BadInput(f"reading {where}", wrong, f"there are: {_names(columns)}") from exc
        except ValidationError as exc:
            raise BadInput(f"reading {where}", _first_problem(exc)) from exc
        except ValueError as exc:
            raise BadInput(f"reading {where}", str(exc)) from exc
        return row

    def _named(self, columns: Columns) -> dict[str, str]:
        """Return the row's id, cluster and slice, as far as the recipe names a column for them."""
        return {
            what: _name_in(columns, column, what) for what, column in self._names.items() if column
        }


def _name_in(columns: Columns, column: str, what: str) -> str:
    try:
        name = text_of_value(columns[column]).strip()
    except ValueError as exc:
        raise ValueError(f"the column '{column}' of data.{what} {exc}") from exc
    if not name:
        raise ValueError(
            f"the column '{column}' of data.{what} is empty; fill it in every row, or leave "
            f"data.{what} out"
        )
    return name


def _names(columns: Columns) -> str:
    more = f" and {len(columns) - NAMES_TOLD} more" if len(columns) > NAMES_TOLD else ""
    return (with_escapes(", ".join(islice(columns, NAMES_TOLD))) or "none") + more


def _refuse_no_text(row: Row) -> None:
    """Raise ValueError for a row that asks nothing, answers nothing, or is no Unicode text."""
    prompt, answers = _texts(row.prompt), _texts(row.completion)
    try:
        "".join((*prompt, *answers, row.id, row.cluster, row.slice)).encode()
    except UnicodeEncodeError as exc:
        half = ascii(exc.object[exc.start])
        raise ValueError(f"it holds {half}, which is half of a character") from exc
    if not any(map(_is_visible, prompt)):
        raise ValueError("prompt: it is empty")
    if not all(map(_is_visible, answers)):
        raise ValueError("completion: the answer is empty")


def _is_visible(text: str) -> bool:
    """Whether a text is more than white space and characters that nobody sees, such as U+200B."""
    return any(unicodedata.category(character) not in INVISIBLE for character in text)


def _texts(part: list[Message] | str) -> list[str]:
    return [part] if isinstance(part, str) else [message.content for message in part]


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
    turns = _messages(completion)
    if any(turn.get("role") != "assistant" for turn in (*turns[:1], *turns[-1:])):
        raise ValueError("completion must begin and end with a message of the assistant")
    return {"prompt": _messages(prompt), "completion": turns}


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
    messages = [
        {key: item for key, item in message.items() if item is not None} for message in value
    ]
    for message in messages:
        role = message.get("role")
        if isinstance(role, str) and (meant := _meant_role(role)) != role:
            given = with_escapes(role[:40])
            raise ValueError(f"the role '{given}' is none of OpenAI's protocol; write '{meant}'")
    return messages


def _meant_role(role: str) -> str:
    """Return the protocol's role that another spelling or name stands for, else the role itself."""
    plain = role.strip().lower()
    meant = MISTAKEN_ROLES.get(plain, plain)
    return meant if meant in ROLES else role


def _from_columns(columns: Columns, mapped: ColumnMapping) -> dict[str, Any]:
    prompt, completion = _fill(mapped.prompt, columns), _fill(mapped.completion, columns)
    answered_by = [columns[field] for _, field in fields_of(mapped.completion) if field is not None]
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


def _fill(template: str, columns: Columns) -> str:
    parts = []
    for literal, field in fields_of(template):
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


def each_turn(row: Row) -> list[Row]:
    """Return one row for each turn of the assistant that something was said before."""
    if isinstance(row.prompt, str) or isinstance(row.completion, str):
        return [row]
    messages = [*row.prompt, *row.completion]
    return [
        Row(prompt=messages[:index], completion=[message])
        for index, message in enumerate(messages)
        if index and message.role == "assistant"
    ]
