"""Trials of a search on disk: an Optuna journal that survives SIGKILL at any moment.

Optuna's own lock of such a file is a link that a killed process leaves behind, for which the next
one waits 30 seconds. The kernel's lock ends with its process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


class _AlreadyLocked(JournalFileOpenLock):
    """What Optuna takes for a lock, where the whole search holds one."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


@contextmanager
def journal(path: Path) -> Iterator[JournalStorage]:
    """Give the storage in a file that this process alone has as long as the block lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        _cut_half_a_line(path)
        yield JournalStorage(JournalFileBackend(str(path), _AlreadyLocked(str(path))))


def _cut_half_a_line(path: Path) -> None:
    """Remove what a killed process did not finish writing: the next line would be added to it."""
    if path.exists():
        whole = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, whole)
