"""A lock on a path of this machine."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from weighbridge.core.file_lock import file_lock


def test_it_is_not_had_twice_and_is_waited_for(tmp_path: Path) -> None:
    path, had = tmp_path / "lock", threading.Event()

    def wait() -> None:
        with file_lock(path):
            had.set()

    with file_lock(path):
        with pytest.raises(BlockingIOError), file_lock(path, wait=False):
            pass
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not had.wait(0.05)
    waiting.join(5)
    assert had.is_set()


def test_older_releases_which_lock_by_filelock_are_kept_out_and_keep_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path), pytest.raises(Timeout):
        FileLock(path).acquire(timeout=0)
    with FileLock(path), pytest.raises(BlockingIOError), file_lock(path, wait=False):
        pass


def test_a_child_that_was_forked_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with file_lock(path, wait=False):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
