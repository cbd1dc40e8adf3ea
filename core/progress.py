"""Progress of long work, told to whoever listens: the terminal, Prefect, nobody."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """How far some work is."""

    what: str
    done: float
    total: float | None
    unit: str


Listener = Callable[[Step], None]
Advance = Callable[[int], None]
"""Is told the bytes that were moved since the last call."""
_listeners: list[Listener] = []


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener` with every step told within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def track(what: str, total: float | None, unit: str = "") -> Iterator[Callable[[float], None]]:
    """Give `update(done)` for a piece of work; `done` and `total` count `unit`s."""

    def update(done: float) -> None:
        # A copy: another thread may begin or end to listen meanwhile.
        for listener in tuple(_listeners):
            listener(Step(what, done, total, unit))

    update(0)
    yield update


@contextmanager
def meter(doing: str, total: int) -> Iterator[Advance]:
    """Give a function that adds up the bytes that many threads have moved, and tells it as
    progress.
    """
    lock = threading.Lock()
    done = 0
    with track(doing, total, "B") as update:

        def advance(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                update(done)

        yield advance
