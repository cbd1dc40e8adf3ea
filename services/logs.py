"""The logs of services and targets: their last lines, and those that come."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.serving.supervisor import Supervisor

POLL = 0.3
"""Seconds between two looks at what was written."""


def log_files(settings: Settings, name: str) -> dict[str, Path]:
    """Return the logs of a service or of a target's versions, by program; of all where empty.

    Raises:
        BadInput: there is none of that name.
    """
    logs = {path.stem: path for path in sorted(Supervisor(settings.home).logs.glob("*.log"))}
    # A version's program is called `<target>@<version>`.
    found = {
        program: path
        for program, path in logs.items()
        if name in ("", program, program.rpartition("@")[0])
    }
    if name and not found:
        known = sorted({program.rpartition("@")[0] or program for program in logs})
        remedy = f"known: {', '.join(known)}" if known else "nothing has run here yet"
        raise BadInput(f"looking for the log of '{name}'", "there is none", remedy)
    return found


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log."""
    if not path.exists():
        return []
    return path.read_text(errors="replace").splitlines()[-count:] if count else []


@dataclass
class _Followed:
    """A log that is read from where it was left off."""

    path: Path
    position: int = 0
    unfinished: bytes = b""

    def read(self) -> list[str]:
        """Return the lines that were written since the last call."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self.position:  # it was rotated: what is there now is new
            self.position, self.unfinished = 0, b""
        if size == self.position:
            return []
        with self.path.open("rb") as stream:
            stream.seek(self.position)
            content = stream.read()
        self.position += len(content)
        *lines, self.unfinished = (self.unfinished + content).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def follow(logs: Mapping[str, Path], poll: float = POLL) -> Iterator[tuple[str, str]]:
    """Yield program and line of whatever is written from now on, for ever."""
    followed = {
        program: _Followed(path, path.stat().st_size if path.exists() else 0)
        for program, path in logs.items()
    }
    while True:
        for program, log in followed.items():
            for line in log.read():
                yield program, line
        time.sleep(poll)
