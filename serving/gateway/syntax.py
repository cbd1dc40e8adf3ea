"""How haproxy writes addresses, paths, durations, and answers of its own.

Nothing here touches haproxy.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def address(host: str, port: int) -> str:
    """Return an address as haproxy writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def quoted(text: Path | str) -> str:
    """Return a path or a text as one word, in which nothing has a meaning."""
    return "'" + str(text).replace("'", "'\\''") + "'"


def milliseconds(seconds: float) -> str:
    """Return a duration, never none at all."""
    return f"{max(1, round(seconds * 1000))}ms"


def json_word(body: Mapping[str, Any]) -> str:
    """Return a JSON object as one word."""
    return quoted(json.dumps(body, separators=(",", ":")))


def answer(status: int, body: Mapping[str, Any], *headers: str) -> str:
    """Return the action that answers a request without any version."""
    more = "".join(f" hdr {header}" for header in headers)
    return f"return status {status} content-type application/json string {json_word(body)}{more}"
