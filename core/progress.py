"""Progress of long work, told to whoever listens: the terminal, Prefect, nobody."""

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
