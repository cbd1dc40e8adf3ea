"""What the gateway answered: its access log, followed from now on."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weighbridge.serving.gateway.models import FinishedRequest

BACKUPS = 3
"""Rotated files that supervisord keeps: log.1 is the newest."""


class AccessLog:
    """The requests to one target that end from now on. For one thread."""

    def __init__(self, log: Path, target: str) -> None:
        self._log = log
        self._target = target
        self._rest = b""
        # Lines reach the file a moment after their requests ended: some of before still come.
        self._since = time.time()
        self._inode, self._offset = 0, 0
        with contextlib.suppress(FileNotFoundError):
            state = log.stat()
            self._inode, self._offset = state.st_ino, state.st_size

    def read(self) -> list[FinishedRequest]:
        """Return what ended since the last read, in that order; a rotation in between loses
        nothing.
        """
        *lines, self._rest = (self._rest + b"".join(self._added())).split(b"\n")
        requests = (_parse(line, self._target) for line in lines if line.startswith(b"{"))
        return [request for request in requests if request and request.at >= self._since]

    def _added(self) -> Iterator[bytes]:
        """Yield what was added to the file last read, and all of those that came after it.

        Each is found by its inode, wherever a rotation in this very moment has moved it.
        """
        while True:
            files = self._files()
            index = next((n for n, (_, inode) in enumerate(files) if inode == self._inode), None)
            if index is None:
                if not files:
                    return
                # The file last read has been rotated away: begin with the oldest there is.
                self._inode, self._offset = files[-1][1], 0
                continue
            with contextlib.suppress(FileNotFoundError), files[index][0].open("rb") as stream:
                state = os.fstat(stream.fileno())
                if state.st_ino != self._inode:
                    continue
                stream.seek(self._offset if state.st_size >= self._offset else 0)
                yield stream.read()
                self._offset = stream.tell()
                if index == 0:
                    return
                self._inode, self._offset = files[index - 1][1], 0

    def _files(self) -> list[tuple[Path, int]]:
        """Return the log and those before it with their inodes, newest first."""
        backups = [self._log.with_name(f"{self._log.name}.{n}") for n in range(1, BACKUPS + 1)]
        files = []
        for path in (self._log, *backups):
            with contextlib.suppress(FileNotFoundError):
                files.append((path, path.stat().st_ino))
        return files


def _parse(line: bytes, target: str) -> FinishedRequest | None:
    """Return what a line says of a request to this target; None of any other line."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    if entry.get("target") != target:
        return None
    # haproxy's termination state: who ended the session early (`-` nobody, C and c the client), and
    # in which phase (D data, L last data).
    ended_by, phase = entry["cut"][0], entry["cut"][1]
    return FinishedRequest(
        server="" if entry["server"] == "<NOSRV>" else entry["server"],
        status=entry["status"],
        seconds=max(entry["ms"], 0) / 1000,
        stream=entry["type"].startswith("text/event-stream"),
        truncated=ended_by not in "-Cc" and phase in "DL",
        aborted=ended_by in "Cc",
        pinned=bool(entry["pinned"]),
        # A plus before the count: another version was tried in the end.
        moved=str(entry.get("retries", "")).startswith("+"),
        at=entry["ended"] / 1000,
        first_byte=_seconds(entry.get("first_byte_ms", -1)),
        bytes=max(entry.get("bytes", 0) - entry.get("head", 0), 0),
    )


def _seconds(milliseconds: int) -> float | None:
    """Return a time of haproxy's, which is -1 where it did not come to that."""
    return milliseconds / 1000 if milliseconds >= 0 else None
