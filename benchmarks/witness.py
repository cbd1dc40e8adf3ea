"""A witness of the machine's own pace, beside what is measured: a fixed piece of a processor's work
every tenth of a second, in a process of its own, with how long it took.

    python -m benchmarks.witness

It takes a twentieth of a core. Its work is a checksum of what fits into a processor's cache, as a
tiny model does.
"""

import contextlib
import hashlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from weighbridge.core.parent_death import die_with_parent

WORK: Final = bytes(4 * 2**20)
EVERY: Final = 0.1


class Sample(NamedTuple):
    """One piece of work."""

    at: float
    """Monotonic clock, which all processes share."""
    seconds: float


class Witness:
    """A process that writes down how long its work takes."""

    def __init__(self, process: psutil.Process, notes: Path) -> None:
        self.process = process
        self._notes = notes

    def samples(self) -> list[Sample]:
        """Return every piece of work so far."""
        whole = self._notes.read_text().rpartition("\n")[0]
        return [Sample(*map(float, line.split())) for line in whole.splitlines()]


@contextlib.contextmanager
def witness() -> Iterator[Witness]:
    """Give a witness that works as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes")
        with notes.open("w") as stream:
            child = subprocess.Popen([sys.executable, "-m", __name__], stdout=stream)
        try:
            yield Witness(psutil.Process(child.pid), notes)
        finally:
            child.kill()
            child.wait()


def change(samples: Sequence[Sample], ends: Sequence[float]) -> float:
    """Return by which share the machine was faster in the last half of some blocks than in the
    first, NaN where one half has no sample.

    Args:
        samples: of the witness.
        ends: when the first block began, and when each one ended.
    """
    half = (len(ends) - 1) // 2
    first = _mean_log(samples, ends[0], ends[half])
    last = _mean_log(samples, ends[-1 - half], ends[-1])
    return math.expm1(first - last)


def _mean_log(samples: Sequence[Sample], begin: float, end: float) -> float:
    logs = [math.log(sample.seconds) for sample in samples if begin <= sample.at < end]
    return math.fsum(logs) / len(logs) if logs else math.nan


def work() -> None:
    """Work until somebody ends this process, or the one that started it."""
    die_with_parent(os.getppid())
    while True:
        began = time.monotonic()
        hashlib.sha256(WORK)
        print(began, time.monotonic() - began, flush=True)
        time.sleep(EVERY)


if __name__ == "__main__":
    work()
