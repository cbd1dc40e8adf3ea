"""The errors of Weighbridge, each with the exit code the command line gives it.

::

    WeighbridgeError      1  anything not named below
    ├── BadInput          2  the user's input: recipe, data, arguments, repository contents
    ├── GateFailed        3  a gate said no: worse fine-tune, no candidate within the limits
    └── Unavailable       4  a component is missing, down or does not start

Third-party errors are translated where the library is called, with ``raise … from exc``.
"""

import json
from typing import ClassVar


class WeighbridgeError(Exception):
    """One line for a person: what was being done, what is wrong, what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, doing: str, wrong: str, remedy: str = "") -> None:
        super().__init__(doing, wrong, remedy)
        self.doing = doing
        self.wrong = wrong
        self.remedy = remedy

    def __str__(self) -> str:
        line = f"{self.doing}: {self.wrong}"
        return f"{line}; {self.remedy}" if self.remedy else line

    def as_json(self) -> str:
        """Return the error as text for another process, which makes it again by `error_from`."""
        told = {"doing": self.doing, "wrong": self.wrong, "remedy": self.remedy}
        return json.dumps({**told, "exit_code": self.exit_code})


class BadInput(WeighbridgeError):
    """What the user gave cannot be used."""

    exit_code = 2


class GateFailed(WeighbridgeError):
    """Everything worked, and the result is not good enough to go on with."""

    exit_code = 3


class Unavailable(WeighbridgeError):
    """A component that is needed is missing, down, or does not start."""

    exit_code = 4


def error_from(text: str) -> WeighbridgeError:
    """Return the error that another process has told by `as_json`.

    Raises:
        ValueError: the text tells of none.
    """
    kinds = {kind.exit_code: kind for kind in (BadInput, GateFailed, Unavailable)}
    try:
        told = json.loads(text)
        kind = kinds.get(told["exit_code"], WeighbridgeError)
        return kind(told["doing"], told["wrong"], told["remedy"])
    except (LookupError, TypeError) as exc:
        raise ValueError(f"no error is told by {text!r}") from exc
