"""One file in parallel ranges, resumable: parts that are done are noted beside the file, and found
again.

Also works for a server that knows no ranges, one stream at a time.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from weighbridge.core.progress import Advance

PART = 16 << 20
"""Bytes per range."""
STREAMS = 4
"""Ranges of one file at once."""
ATTEMPTS = 5
"""Times a range may fail in a row without having moved a byte on."""
PATIENCE = 0.5
"""Seconds before the second attempt; doubled each time."""

ReadRange = Callable[[int, int], Iterator[bytes]]
"""Yields the bytes from `start` up to but not including `end`."""

logger = logging.getLogger(__name__)


class Transient(Exception):
    """The connection failed in a way that may be gone at the next attempt."""


def fetch_ranges(read: ReadRange, size: int, to: Path, advance: Advance) -> None:
    """Write `size` bytes to `to`, reading ranges in parallel and going on where an earlier call was
    killed.

    `read` raises Transient when trying again may help; after some attempts without a byte that is
    raised.
    """
    part = PART
    journal = _Journal(to, size, part)
    todo = [start for start in range(0, size, part) if start not in journal.done]
    advance(sum(min(part, size - start) for start in journal.done))
    stop = threading.Event()
    with to.open("r+b" if to.exists() else "w+b") as stream, ThreadPoolExecutor(STREAMS) as pool:
        # Full length at once, so that ranges can be written in any order; it takes no disk yet.
        stream.truncate(size)

        def fetch(start: int) -> None:
            _fetch_part(read, start, min(start + part, size), stream.fileno(), advance, stop)
            # After the bytes: a kill in between costs the part, never correctness.
            journal.note(start)

        futures = [pool.submit(fetch, start) for start in todo]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    journal.forget()


class _Stopped(Exception):
    """Another part has failed."""


def _fetch_part(
    read: ReadRange, start: int, end: int, descriptor: int, advance: Advance, stop: threading.Event
) -> None:
    attempt, at = 0, start
    while at < end:
        attempt_start = at
        try:
            for chunk in read(at, end):
                if stop.is_set():
                    raise _Stopped
                if at + len(chunk) > end:
                    raise Transient("more bytes came than were asked for")
                # pwrite has no position that threads with one descriptor would move for each other.
                os.pwrite(descriptor, chunk, at)
                at += len(chunk)
                advance(len(chunk))
            if at < end:
                raise Transient(f"the connection ended {end - at} bytes early")
        except Transient as exc:
            attempt = 1 if at > attempt_start else attempt + 1
            if attempt >= ATTEMPTS:
                raise
            logger.debug("range %d-%d: %s; trying again", at, end, exc)
            # Instead of sleep: a failure elsewhere ends the pause.
            if stop.wait(PATIENCE * 2 ** (attempt - 1)):
                raise _Stopped from exc


class _Journal:
    """Which parts of a file are there, one line per part, so that a kill costs at most a line."""

    def __init__(self, to: Path, size: int, part: int) -> None:
        self._path = to.with_name(to.name + ".parts")
        self._lock = threading.Lock()
        head = json.dumps({"size": size, "part": part})
        self.done = self._read(head, to)
        if not self.done:
            self._path.write_text(head + "\n")

    def _read(self, head: str, to: Path) -> set[int]:
        if not to.exists() or not self._path.exists():
            return set()
        first, *lines = self._path.read_text().split("\n")
        if first != head:
            return set()
        done = set()
        # What follows the last line break was cut off by a kill.
        for line in lines[:-1]:
            with contextlib.suppress(ValueError):
                done.add(int(line))
        return done

    def note(self, start: int) -> None:
        with self._lock, self._path.open("a") as stream:
            stream.write(f"{start}\n")

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
