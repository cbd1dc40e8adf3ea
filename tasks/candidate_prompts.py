"""Prompts that no prefix cache answers."""

from typing import Any


def with_own_beginning(body: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a request's body whose prompt begins with a number: its first token is another than
    that of all others, so an engine has to read every one from its beginning.
    """
    if "prompt" in body:
        return {**body, "prompt": f"{number} {body['prompt']}"}
    first, *others = body["messages"]
    return {**body, "messages": [{**first, "content": f"{number} {first['content']}"}, *others]}
