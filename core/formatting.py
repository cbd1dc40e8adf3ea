"""Numbers and texts as people read them."""

import json
from typing import Final

UNKNOWN: Final = "—"
"""In a table, where there is no figure."""


def quoted(value: object) -> str:
    """Return a text in double quotes, line breaks and all in one line; numbers as they are."""
    return json.dumps(value, ensure_ascii=False)


def with_escapes(text: str) -> str:
    """Return a text of somebody else's without line breaks, control characters and halves of
    characters: each stands there as its escape.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def one_line(text: object, longest: int | None = None) -> str:
    """Return a text on one line, cut after so many characters; of an error without words its type.

    What other programs and libraries say has line breaks and columns; a line of ours has none.
    """
    told = str(text)
    if not told and isinstance(text, BaseException):
        told = type(text).__name__
    line = " ".join(told.split())
    return line if longest is None or len(line) <= longest else f"{line[:longest]}…"


def not_utf8(exc: UnicodeDecodeError) -> str:
    """Return what is wrong with bytes that are no text."""
    return f"it is not UTF-8 text: {exc.reason} at byte {exc.start}"


def human_size(size: float) -> str:
    """Return a number of bytes in binary units: `2.4 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def human_seconds(seconds: float) -> str:
    """Return short times in milliseconds, long ones in seconds: `31 ms`, `2.4 s`."""
    if abs(seconds) >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 0.01 else f"{seconds * 1000:.0f} ms"
