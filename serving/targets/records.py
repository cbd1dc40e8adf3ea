"""What is written down of a target, wherever that lies: its state, operator commands, outbox, lock.

It lies with the target and not with whoever deploys to it: where versions run on this machine, in a
folder of this home (home_records.py); where they run elsewhere, there, under a version that every
change must name (shared_records.py). So a deployer that starts on another machine reads what was
going on, and of two only one acts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from weighbridge.core.errors import Unavailable

STATE: Final = "state.json"
"""What serves, what is being rolled out, what should serve, by which arguments."""
COMMANDS: Final = "orders.json"
"""What people told the rollout. An older name: a command given before an update is still obeyed."""
LEDGER: Final = "ledger.jsonl"
"""Lines of the ledger that MLflow may not have yet."""
MIRRORED: Final = "ledger.mirrored"
"""How many of them it has."""
CHECKS: Final = "checks.json"
"""What monitoring saw."""
RESTART: Final = "restart.json"
"""The last restart of an engine that hung."""

Change = Callable[[bytes], bytes | None]
"""Takes what a document holds (nothing where there is none) and returns what it shall hold: None
for what it holds, nothing for that there shall be none.
"""


class TargetLocked(Unavailable):
    """Somebody else deploys to the target now."""


class LockLost(Unavailable):
    """The target's lock is another deployer's by now, or may be: nothing more is to be done there.

    Whoever has it has read what was going on, and settles it.
    """


@dataclass(frozen=True)
class Document:
    """One document as it was read."""

    content: bytes = b""
    """Empty: there is none."""
    changed_at: float = 0.0
    """Unix time of the last change, by the clock of whoever made it; 0: there is none."""


class TargetRecords(ABC):
    """The documents of one target by name, and its lock.

    Any number of processes on any number of machines use them at once. Every change is whole or not
    made, and outlives a loss of power once the call returns.
    """

    OUTBOX_BYTES: ClassVar[int | None] = None
    """So long the ledger's lines may be before the outbox is shortened; None: as long as MLflow is
    away.
    """

    @property
    @abstractmethod
    def place(self) -> str:
        """Where they lie, for people; of two targets it is the same only where they share it."""

    @abstractmethod
    def read(self, name: str) -> Document:
        """Return a document as it is now.

        Raises:
            Unavailable: the place does not answer.
            LockLost: under a lock that is not held any more.
        """

    @abstractmethod
    def change(self, name: str, change: Change) -> None:
        """Change a document; of changes at once, each is made upon the one before.

        Args:
            name: the document's.
            change: called with what it holds, more than once where others change it meanwhile. What
                it raises ends this, and nothing is changed.

        Raises:
            Unavailable: the place does not answer, or has no room.
            LockLost: under a lock that is not held any more. It is refused in the very step that
                writes: not even a process that stood still between a look at the lock and this call
                changes anything.
        """

    @abstractmethod
    def lock(self, *, wait: bool) -> AbstractContextManager[Self]:
        """Keep everybody else from deploying to this target, for as long as the block lasts.

        Changes that need no lock (commands, arguments) go on from elsewhere meanwhile. The lock of
        a process that dies, or of a machine that is cut off, becomes free by itself.

        Args:
            wait: whether to wait until it is free.

        Returns:
            The same records, under the lock: what is read and changed through them is refused once
            the lock is lost.

        Raises:
            TargetLocked: it is not free, and not waited for.
            Unavailable: the place does not answer.
        """

    # Optional: what a place may leave as it is here.

    def append(self, name: str, line: Callable[[bytes], bytes]) -> None:
        """Add a line to a document, on a line of its own also after one that a crash cut off.

        Args:
            name: the document's.
            line: called with what it holds, and returns the line; more than once, as in `change`.

        Raises:
            Unavailable, LockLost: as `change` does.
        """

        def with_line(content: bytes) -> bytes:
            separator = b"" if not content or content.endswith(b"\n") else b"\n"
            return content + separator + line(content) + b"\n"

        self.change(name, with_line)

    def glance(self, name: str) -> bytes:
        """Return what a document held a moment ago, for whoever looks many times a second.

        Raises:
            Unavailable, LockLost: as `read` does.
        """
        return self.read(name).content

    def is_locked(self) -> bool:
        """Whether somebody deploys to this target now."""
        try:
            with self.lock(wait=False):
                return False
        except TargetLocked:
            return True

    def turn(self) -> AbstractContextManager[None]:
        """Let those who make the address follow the state do so one after the other.

        Where the place has no means for that, they look again afterwards and repeat it where the
        state has changed meanwhile. Not to be nested, and no `change` of the state within it.
        """
        return nullcontext()
