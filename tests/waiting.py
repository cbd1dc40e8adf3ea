"""Waiting for what becomes true by itself, in another thread or process."""

from collections.abc import Callable

from weighbridge.conformance.base import eventually

SECONDS = 20.0
POLL = 0.03


def soon(true: Callable[[], object], seconds: float = SECONDS, poll: float = POLL) -> bool:
    """Whether it becomes true in time."""
    return eventually(true, seconds, poll)


def until(
    true: Callable[[], object],
    seconds: float = SECONDS,
    otherwise: Callable[[], str] = lambda: "it did not come true in time",
    *,
    poll: float = POLL,
) -> None:
    """Wait for it; the test fails with the words of `otherwise` where it does not come.

    `poll`: seconds between two looks, for those that cost services a part of a processor.
    """
    assert soon(true, seconds, poll), otherwise()
