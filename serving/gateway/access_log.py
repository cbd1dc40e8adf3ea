"""What the gateway answered: its log, followed from now on."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weighbridge.serving.gateway.models import FinishedRequest

BACKUPS = 3
"""Rotated files that supervisord keeps: log.1 is the newest."""


class AccessLog:
    """The requests to one target that end from now on. Not for more than one thread."""

    def __init__(self, log: Path, target: str) -> None:
        self._log = log
        self._target = target
        self._rest = b""
        self._inode, self._offset = 0, 0
        with contextlib.suppress(FileNotFoundError):
            state = log.stat()
            self._inode, self._offset = state.st_ino, state.st_size

    def read(self) -> list[FinishedRequest]:
        """New since the last read, in the order in which they ended; a rotation in between loses
        none.
        """
        *lines, self._rest = (self._rest + b"".join(self._pieces())).split(b"\n")
        found = (_seen(line, self._target) for line in lines if line.startswith(b"{"))
        return [seen for seen in found if seen]

    def _pieces(self) -> Iterator[bytes]:
        """What was added to the file last read, and all of those that came after it.

        Each is found by its inode, wherever a rotation in this very moment has moved it.
        """
        while True:
            chain = self._chain()
            place = next((at for at, (_, inode) in enumerate(chain) if inode == self._inode), None)
            if place is None:
                if not chain:
                    return
                self._inode, self._offset = chain[-1][1], 0
                continue
            with contextlib.suppress(FileNotFoundError), chain[place][0].open("rb") as stream:
                state = os.fstat(stream.fileno())
                if state.st_ino != self._inode:
                    continue
                stream.seek(self._offset if state.st_size >= self._offset else 0)
                yield stream.read()
                self._offset = stream.tell()
                if place == 0:
                    return
                self._inode, self._offset = chain[place - 1][1], 0

    def _chain(self) -> list[tuple[Path, int]]:
        """The log and those before it, newest first."""
        found = []
        for path in (
            self._log,
            *(self._log.with_name(f"{self._log.name}.{n}") for n in range(1, BACKUPS + 1)),
        ):
            with contextlib.suppress(FileNotFoundError):
                found.append((path, path.stat().st_ino))
        return found


def _seen(line: bytes, target: str) -> FinishedRequest | None:
    try:
        said: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    if said.get("target") != target:
        return None
    who, phase = said["cut"][0], said["cut"][1]
    return FinishedRequest(
        server="" if said["server"] == "<NOSRV>" else said["server"],
        status=said["status"],
        seconds=max(said["ms"], 0) / 1000,
        stream=said["type"].startswith("text/event-stream"),
        truncated=who not in "-Cc" and phase in "DL",
        aborted=who in "Cc",
        pinned=bool(said["pinned"]),
        moved=str(said.get("retries", "")).startswith("+"),
        at=said["ended"] / 1000,
    )
