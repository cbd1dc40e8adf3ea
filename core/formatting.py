"""Numbers and texts as people read them."""

import json
import math
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


def figure(value: float, digits: int = 3, *, zeros: bool = False) -> str:
    """Return a number with so many digits that say something, without an exponent unless it is
    less than a millionth: `59.3`, `1,234`, `0.0000798`.

    Args:
        value: The number.
        digits: How many say something; whole numbers keep all of theirs.
        zeros: Keep those at the end, for figures that stand beside each other: `59.0 / 80.3`.
    """
    value += 0.0  # of a zero with a sign: without it
    if not math.isfinite(value) or 0 < abs(value) < 1e-6:
        return f"{value:.{digits}g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    text = f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not zeros else text


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


def between_seconds(low: float, high: float) -> str:
    """Return from when to when something is, with one unit where both ends have the same:
    `28–40 ms`, `900 ms–1.2 s`.
    """
    first, last = human_seconds(low), human_seconds(high)
    unit = last[last.index(" ") :]
    return f"{first.removesuffix(unit)}–{last}"
