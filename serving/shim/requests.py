"""A request's body, checked: what cannot be done is refused in words, and nothing that was asked
for is left out in silence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from weighbridge.serving.shim.protocol import Generator, Sampling

COMPLETION_TOKENS: Final = 16
"""Most tokens of a plain completion when nobody says how many: OpenAI's own default."""
MOST_STOPS: Final = 16
MOST_LOGPROBS: Final = 20
"""OpenAI's own bound."""
NOT_OFFERED: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
}
"""Options that would change the answer and that this server does not know, with the values that ask
for nothing.
"""


class InvalidRequest(Exception):
    """The request cannot be answered; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class CompletionRequest:
    """What one request asks for."""

    chat: bool
    prompt: tuple[int, ...]
    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    """Whether a stream ends by telling how many tokens it took."""


def read_json(raw: bytes) -> dict[str, Any]:
    """Return the object in a request's body."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InvalidRequest("the body is not a JSON object")
    return body


def read_completion_request(
    body: Mapping[str, Any], *, chat: bool, generator: Generator
) -> CompletionRequest:
    """Return what a request asks for; everything is checked before anything is generated.

    Raises:
        InvalidRequest: this model or this server cannot do what it asks.
    """
    for name, harmless in NOT_OFFERED.items():
        if body.get(name) not in harmless:
            raise InvalidRequest(f"`{name}` is not offered by this server")
    prompt = _chat(body, generator) if chat else _plain(body, generator)
    if not prompt:
        raise InvalidRequest("the prompt is empty")
    room = generator.context - len(prompt)
    if room < 1:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens, and the model's context holds "
            f"{generator.context}, the answer included"
        )
    stream = _flag(body, "stream")
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise InvalidRequest("`stream_options` must be an object")
    return CompletionRequest(
        chat,
        tuple(prompt),
        _sampling(body, chat, room),
        _stops(body),
        stream,
        _flag(options, "include_usage"),
    )


def _chat(body: Mapping[str, Any], generator: Generator) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` must be a list with at least one message")
    try:
        return generator.chat([_message(message) for message in messages])
    except ValueError as exc:
        raise InvalidRequest(f"the chat template refuses these messages: {exc}") from exc


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest("every message needs a `role` and a `content`")
    content = message.get("content")
    # Clients may send the text in parts; images and sounds are parts, too, and are refused.
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise InvalidRequest("the `content` of a message must be text")
    return {"role": read_text(message["role"]), "content": read_text(content)}


def read_text(text: str) -> str:
    """Return the text; refuse halves of characters, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"the text is not Unicode: {exc.reason}") from exc
    return text


def _plain(body: Mapping[str, Any], generator: Generator) -> list[int]:
    prompt = body.get("prompt")
    # The API allows several prompts; this server one, be it in a list.
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return generator.tokenize(read_text(prompt), special=True)
    return read_tokens(body, "prompt")


def read_tokens(body: Mapping[str, Any], name: str) -> list[int]:
    """Return a list of token ids, be it given as the only one of a list of prompts."""
    tokens = body.get(name)
    if isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], list):
        tokens = tokens[0]
    # By `type`: true and false are numbers to isinstance.
    if not isinstance(tokens, list) or not all(
        type(token) is int and token >= 0 for token in tokens
    ):
        raise InvalidRequest(f"`{name}` must be one text or one list of token ids")
    return tokens


def _sampling(body: Mapping[str, Any], chat: bool, room: int) -> Sampling:
    default = room if chat else COMPLETION_TOKENS
    # `max_tokens` is the older name of the same.
    limit = _whole(body, "max_completion_tokens", 1) or _whole(body, "max_tokens", 1) or default
    temperature, top_p = _number(body, "temperature", 0, 100), _number(body, "top_p", 0, 1)
    return Sampling(
        max_tokens=min(limit, room),
        # What OpenAI's API does where a request does not say.
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        # -1 means all tokens to vLLM, as 0 does here.
        top_k=max(0, _whole(body, "top_k", -1) or 0),
        seed=_whole(body, "seed", -(2**63), 2**63 - 1),
        logprobs=_logprobs(body, chat),
    )


def _logprobs(body: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _whole(body, "logprobs", 0, MOST_LOGPROBS)
    top = _whole(body, "top_logprobs", 0, MOST_LOGPROBS) or 0
    return top if _flag(body, "logprobs") else None


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    stops = body.get("stop")
    listed: Sequence[Any] = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if (
        not isinstance(listed, list)
        or len(listed) > MOST_STOPS
        or not all(isinstance(s, str) and s for s in listed)
    ):
        raise InvalidRequest(
            f"`stop` must be a text, or a list of at most {MOST_STOPS}, none of them empty"
        )
    return tuple(listed)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, True, False):
        raise InvalidRequest(f"`{name}` must be true or false")
    return bool(value)


def _number(
    body: Mapping[str, Any], name: str, least: float, most: float = math.inf
) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        bounds = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise InvalidRequest(f"`{name}` must be a number {bounds}")
    return value


def _whole(body: Mapping[str, Any], name: str, least: int, most: float = math.inf) -> int | None:
    value = _number(body, name, least, most)
    if value is None:
        return None
    if value != int(value):
        raise InvalidRequest(f"`{name}` must be a whole number")
    return int(value)
