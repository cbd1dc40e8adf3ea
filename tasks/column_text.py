"""What a column's value becomes in a template: one spelling for each type, and a refusal where
there is none. docs/data.md holds the same as a table.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID


def fields_of(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield the literal texts of a template, each with the column after it.

    Raises:
        ValueError: it is no template.
    """
    for literal, field, spec, conversion in string.Formatter().parse(template):
        if spec or conversion or field == "":
            raise ValueError(f"in '{template}': only {{column}} is possible between braces")
        yield literal, field


class Rounded(float):
    """A number of JSON that has more digits than floating-point numbers keep."""


def number_of(text: str) -> float:
    """Return a number of JSON, which says so where digits of it are lost."""
    value = float(text)
    # Fifteen digits always come back; what is no number is refused where it is used.
    if (len(text) <= 16 and "e" not in text.lower()) or not math.isfinite(value):
        return value
    try:
        # C's `%.17g` is what programs print that know no shorter form: 0.10000000000000001.
        is_whole = Decimal(text) in (Decimal(repr(value)), Decimal(f"{value:.17g}"))
    except ArithmeticError:  # an exponent of a million digits
        is_whole = False
    return value if is_whole else Rounded(value)


def text_of_value(value: Any) -> str:
    """Return a value as the model reads and writes it.

    Raises:
        ValueError: it is empty, no number, or of a type that has no one spelling; the words go on
            after the column's name.
    """
    if value is None:
        raise ValueError("is empty")
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal | date | datetime | time | UUID):
        return _plain(value)
    try:
        return json.dumps(_json_value(value), ensure_ascii=False)
    except RecursionError as exc:
        raise ValueError("is nested too deep") from exc


def _plain(value: Decimal | date | time | UUID) -> str:
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError(f"holds {value}, which is no number")
        # Never 1.5E+3: the digits as the column declares them.
        return f"{value:f}"
    return str(value) if isinstance(value, UUID) else value.isoformat()


def _json_value(value: Any) -> Any:
    """Return what JSON can hold; decimals, dates and times inside it are strings."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"holds {value}, which is no number")
        if isinstance(value, Rounded):
            raise ValueError(f"holds {value!r} with more digits than are kept: write it as text")
        return value
    if isinstance(value, Decimal | date | time | UUID):
        return _plain(value)
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    kind = "bytes" if isinstance(value, bytes) else type(value).__name__
    raise ValueError(f"holds {kind}, which has no one spelling as text")
