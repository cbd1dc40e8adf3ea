"""This package's version, and the refusal of what a newer one has written.

Machines are not updated at once: a record, or what one sends to another, may come from a newer
release than the one that reads it.
"""

import importlib.metadata
import re
from functools import cache

from weighbridge.core.errors import Unavailable


@cache
def own_version() -> str:
    """Return the version of Weighbridge that runs here; empty where it is not installed."""
    try:
        return importlib.metadata.version("weighbridge")
    except importlib.metadata.PackageNotFoundError:
        return ""


def is_newer(version: str) -> bool:
    """Whether a version of Weighbridge is later than the one that runs here."""
    return bool(own_version()) and _numbers(version) > _numbers(own_version())


def refuse_newer(doing: str, form: int, known: int, written_by: str) -> None:
    """Check that what is read has a form that this version knows.

    Args:
        doing: what is read, for the message.
        form: number of its form, which goes up when older versions must not read it.
        known: the highest that this version knows.
        written_by: version that wrote it.

    Raises:
        Unavailable: it has a later form.
    """
    if form > known:
        raise Unavailable(doing, *written_by_newer(written_by))


def written_by_newer(version: str) -> tuple[str, str]:
    """Return what is wrong with what a newer version wrote, and what to do about it."""
    wrong = f"Weighbridge {version} wrote it, and {own_version()} here does not understand it"
    return wrong, f"install weighbridge>={version} here"


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with; none of what is no version."""
    match = re.match(r"\d+(\.\d+)+", version)
    return tuple(map(int, match[0].split("."))) if match else ()
