"""Waiting for what becomes true by itself, in another thread or process."""

import time
from collections.abc import Callable

SECONDS = 90.0
"""Far more than any of it takes on a machine that has other work."""
POLL = 0.03


def soon(true: Callable[[], object], seconds: float = SECONDS) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def until(
    true: Callable[[], object],
    seconds: float = SECONDS,
    otherwise: Callable[[], str] = lambda: "it did not come true in time",
) -> None:
    """Wait for it; the test fails with the words of `otherwise` where it does not come."""
    assert soon(true, seconds), otherwise()
