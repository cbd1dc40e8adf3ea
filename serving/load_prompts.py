"""Prompts for the load generator that its user gives: a file of rows."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighbridge.core.errors import BadInput
from weighbridge.core.files import read_json_lines
from weighbridge.serving.openai_client import Payload


def given_payloads(path: Path, count: int, max_tokens: int) -> list[Payload]:
    """Return `count` requests for the rows of a file, in their order, over and over where they are
    fewer. A row is a text, or has `messages` or `prompt`, a text or messages.

    Raises:
        BadInput: there is no such file, or none of its rows can be asked.
    """
    doing = f"reading prompts from {path}"
    try:
        rows = read_json_lines(path)
    except OSError as exc:
        raise BadInput(doing, (exc.strerror or str(exc)).lower(), "check the path") from exc
    except ValueError as exc:
        raise BadInput(doing, f"it is not JSON, line by line: {exc}") from exc
    if not rows:
        raise BadInput(doing, "it is empty", "give one JSON object a line")
    bodies = [_body(row, f"{doing}, line {number}") for number, row in enumerate(rows, start=1)]
    taken = itertools.islice(itertools.cycle(bodies), count)
    return [{**body, "max_tokens": max_tokens} for body in taken]


def _body(row: Any, doing: str) -> Payload:
    asked = row.get("messages", row.get("prompt")) if isinstance(row, Mapping) else row
    if isinstance(asked, str) and asked:
        return {"prompt": asked}
    if isinstance(asked, list) and asked and all(isinstance(turn, Mapping) for turn in asked):
        # A row to learn from ends with the answer.
        turns = asked[:-1] if asked[-1].get("role") == "assistant" else asked
        if turns:
            return {"messages": turns}
    raise BadInput(doing, "it has neither `messages` nor `prompt`", "give one of them")
