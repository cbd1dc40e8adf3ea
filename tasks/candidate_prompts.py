"""Rows as bodies of requests, also such that no prefix cache answers."""

import itertools
from collections.abc import Sequence
from typing import Any

from weighbridge.serving.openai_client import Payload
from weighbridge.tasks.data import Row


def with_own_beginning(body: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a request's body whose prompt begins with a number: its first token is another than
    that of all others, so an engine has to read every one from its beginning.
    """
    if "prompt" in body:
        return {**body, "prompt": f"{number} {body['prompt']}"}
    first, *others = body["messages"]
    return {**body, "messages": [{**first, "content": f"{number} {first['content']}"}, *others]}


def prompt_of(row: Row) -> str | list[dict[str, str]]:
    """Return a row's prompt as the API takes it: a text, or messages."""
    if isinstance(row.prompt, str):
        return row.prompt
    return [message.model_dump() for message in row.prompt]


def body_of(row: Row) -> dict[str, Any]:
    """Return the part of a request's body that holds the row's prompt."""
    prompt = prompt_of(row)
    return {"prompt" if isinstance(prompt, str) else "messages": prompt}


def prompts_of_level(
    payloads: Sequence[Payload], number: int, levels: int, least: int
) -> list[Payload]:
    """Return the prompts of one of several levels of load: each begins at another part of them, and
    they come again where there are fewer than `least`.
    """
    first = number * (len(payloads) // levels)
    rotated = [*payloads[first:], *payloads[:first]]
    return list(itertools.islice(itertools.cycle(rotated), max(len(rotated), least)))
