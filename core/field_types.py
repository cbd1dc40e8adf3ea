"""Types of texts in a recipe that end up in a command line, a path or a configuration file."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

PathText = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A path or the like: no line break, nor another control character."""
Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$")]
"""A value after an option of a command line: nothing that would be an option itself."""


def absolute(path: str | Path) -> Path:
    """Return a path as every process finds it; `~` is a user's home folder.

    Raises:
        ValueError: there is no such user.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError(f"nobody is called {Path(path).parts[0]} here") from exc


def regular_expression(text: str) -> str:
    """Return the text. Raises ValueError where it is no regular expression of Python's."""
    try:
        re.compile(text)
    except re.error as exc:
        raise ValueError(f"'{text}' is no regular expression: {exc}") from exc
    return text


Pattern = Annotated[str, AfterValidator(regular_expression)]
"""A regular expression, compiled now and not when it is needed."""


def is_address(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 address, or `localhost`."""
    if text == "localhost":
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    # The scope of an address (`fe80::1%eth0`) may be any text at all.
    return "%" not in text


def _address(text: str) -> str:
    if not is_address(text):
        raise ValueError("must be an address of this machine, such as 127.0.0.1, 0.0.0.0 or ::1")
    return text


Address = Annotated[str, AfterValidator(_address)]
"""An IPv4 or IPv6 address, or `localhost`. No other name: haproxy would not start while nobody can
resolve it.
"""
