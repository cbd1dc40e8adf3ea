"""What clients may ask of an engine, whoever lets them in: the gateway, or a Bento served alone.

An operation is a method and an exact path, `POST /v1/chat/completions`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

OPENAI_OPERATIONS: Final = frozenset(
    {
        "GET /v1/models",
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/embeddings",
        "POST /v1/responses",
    }
)
"""Of OpenAI's protocol, those by which a model is used. An engine without one of them answers 404
itself.
"""
SAMPLED_OPERATIONS: Final = frozenset(
    {"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses"}
)
"""Those whose answers are drawn."""
MAX_BODY_BYTES: Final = 1 << 20
"""Where nobody says how large a request may be. A prompt of 128,000 tokens takes half of it; an
engine takes up to a hundred times as much memory while it reads one.
"""
BODY_SECONDS: Final = 30.0
"""Where nobody says how long a request's body may take to come."""

# No `%`: a server that decodes a path must find the one that was declared. No `;` either, which
# ends a command of haproxy's.
_OPERATION: Final = re.compile(r"[A-Z]+ /[A-Za-z0-9._~:@/-]*")


def is_operation(text: str) -> bool:
    """Whether this is a method and a path as an engine may declare it."""
    return bool(_OPERATION.fullmatch(text)) and not {".", ".."} & set(text.split("/"))


def common_operations(engines: Iterable[Iterable[str]]) -> frozenset[str]:
    """Return the operations that every engine declares: a request may reach any of them.

    Returns:
        OpenAI's where there is no engine.
    """
    declared = [frozenset(operations) for operations in engines]
    return frozenset.intersection(*declared) if declared else OPENAI_OPERATIONS


def with_defaults(operation: str, body: bytes, defaults: Mapping[str, float]) -> bytes:
    """Return a request's body with the sampling that it does not name.

    Args:
        operation: that is asked for.
        body: a JSON object; what is none is the engine's to refuse.
        defaults: `temperature` and `top_p`, under OpenAI's names.
    """
    if not defaults or operation not in SAMPLED_OPERATIONS:
        return body
    try:
        named: Any = json.loads(body)
    except (ValueError, RecursionError):
        return body
    # For OpenAI null means the same as nothing.
    missing = {
        name: value
        for name, value in defaults.items()
        if isinstance(named, dict) and named.get(name) is None
    }
    return json.dumps({**named, **missing}).encode() if missing else body


def openai_error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """Return the body of an error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


UNKNOWN_OPERATION: Final = openai_error(
    "There is no such operation here: POST /v1/chat/completions is one, for example.",
    "invalid_request_error",
    "unknown_url",
)
BODY_TOO_LARGE: Final = openai_error(
    "The request's body is larger than this endpoint takes.",
    "invalid_request_error",
    "request_too_large",
)
BODY_TOO_SLOW: Final = openai_error(
    "The request did not come in time.", "invalid_request_error", "timeout"
)
