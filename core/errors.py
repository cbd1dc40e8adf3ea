"""The errors of Weighbridge, each with the exit code the command line gives it.

::

    WeighbridgeError      1  anything not named below
    ├── BadInput          2  the user's input: recipe, data, arguments, repository contents
    ├── GateFailed        3  a gate said no: worse fine-tune, no candidate within the limits
    └── Unavailable       4  a component is missing, down or does not start

Third-party errors are translated where the library is called, with ``raise … from exc``.
"""

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


class BadInput(WeighbridgeError):
    """What the user gave cannot be used."""

    exit_code = 2


class GateFailed(WeighbridgeError):
    """Everything worked, and the result is not good enough to go on with."""

    exit_code = 3


class Unavailable(WeighbridgeError):
    """A component that is needed is missing, down, or does not start."""

    exit_code = 4
