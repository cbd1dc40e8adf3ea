"""Records of a target as files of this home, of versions that run on this machine::

HOME/targets/NAME/state.json      gateway and supervisord are made to follow it
HOME/targets/NAME/ledger.jsonl    the outbox; ledger.mirrored counts what MLflow has of it
HOME/targets/NAME/orders.json     operator commands
HOME/targets/NAME/checks.json     what monitoring saw
HOME/targets/NAME/restart.json    the last restart of an engine that hung
HOME/targets/NAME/lock            held by whoever deploys; the kernel frees it when its holder
                                  dies, so it cannot be lost
HOME/targets/NAME/state.lock      held for one change of the state, or for making the gateway
                                  follow it: new arguments do not wait for a rollout to end
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Self

from weighbridge.core.disk import recording
from weighbridge.core.file_lock import file_lock
from weighbridge.core.files import replace_bytes
from weighbridge.serving.targets.records import STATE, Change, Document, TargetLocked, TargetRecords


def folder_of(name: str, home: Path) -> Path:
    """Return the folder in which this home keeps what it knows of a target."""
    return home / "targets" / name


class HomeRecords(TargetRecords):
    """Records in a folder. A full disk is told as such, and leaves what was there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> Document:
        """Return a document as it is now."""
        try:
            with (self.folder / name).open("rb") as stream:
                content, changed_at = stream.read(), os.fstat(stream.fileno()).st_mtime
        except FileNotFoundError:
            return Document()
        return Document(content, changed_at)

    def change(self, name: str, change: Change) -> None:
        """Change a document. Raises Unavailable where the disk is full."""
        path = self.folder / name
        with recording(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Two may change it at once: neither must undo the other's.
            with self._lock_of(name):
                content = change(self.read(name).content)
                if content:
                    replace_bytes(path, content)
                elif content is not None:
                    path.unlink(missing_ok=True)

    def append(self, name: str, line: Callable[[bytes], bytes]) -> None:
        """Add a line, without writing those before it again. Raises Unavailable: a full disk."""
        path = self.folder / name
        content = self.read(name).content
        separator = b"" if not content or content.endswith(b"\n") else b"\n"
        with recording(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.write(separator + line(content) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())

    @contextmanager
    def lock(self, *, wait: bool) -> Iterator[Self]:
        """Keep every other process of this machine from deploying to this target."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.folder / "lock", wait=wait))
            except BlockingIOError:
                raise TargetLocked(
                    f"deploying to {self.folder.name}", "somebody else does"
                ) from None
            yield self

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep others from changing the state meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock_of(STATE):
            yield

    def _lock_of(self, name: str) -> AbstractContextManager[None]:
        return file_lock(self.folder / f"{name.partition('.')[0]}.lock")
