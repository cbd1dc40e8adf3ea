"""JSON of files that anybody may have written: bounded, and refused where readers would differ.

Nothing but the standard library is imported: environments of engines read here too.
"""

import json
from collections.abc import Callable
from typing import Any, NoReturn


def parse(content: bytes | str, number: Callable[[str], float] = float) -> Any:
    """Return what a JSON document says.

    Args:
        content: The document.
        number: What makes a number of one that is not written as a whole one.

    Raises:
        ValueError: it is not JSON, holds NaN, names a key twice, or is nested too deep to be read.
    """
    try:
        return json.loads(
            content, parse_float=number, parse_constant=_constant, object_pairs_hook=_object
        )
    except RecursionError as exc:
        raise ValueError("it is nested too deep") from exc


def _constant(name: str) -> float:
    # Configurations of state-space models hold Infinity, which transformers writes and reads.
    return float(name) if name != "NaN" else _refuse("it holds NaN")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of two equal keys one reader takes the first, another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                _refuse(f"{key[:80]!r} is there twice")
            seen.add(key)
    return found


def _refuse(wrong: str) -> NoReturn:
    raise ValueError(wrong)
