"""haproxy's runtime socket: one command, one answer, to the master or through it to any of its
workers.

A reload leaves the worker before running until its last request has ended, so there may be several.
"""

import csv
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 10.0
_WORKER = re.compile(r"^(\d+)\s+worker\b", re.MULTILINE)
_SYNC = re.compile(r"\bflags=0x([0-9a-f]+) resync_timeout")
_SYNCED = 0b11
"""Flags of a worker that has a predecessor's table, or waits for none any more."""
_MASTER = re.compile(r"^\d+\s+master\s+(\d+) \[failed: (\d+)\]", re.MULTILINE)


class Gone(Exception):
    """haproxy, or the worker that was asked for, does not answer (any more)."""


@dataclass(frozen=True)
class Reloads:
    """Since the master was started."""

    done: int
    failed: int


@dataclass(frozen=True)
class Server:
    """A row of `show stat`: a server as one worker sees it."""

    target: str
    name: str
    address: str
    status: str
    """`UP`, `DOWN 1/3`, `MAINT`, `DRAIN` (weight 0), `no check` …"""
    weight: int
    limit: int
    """Of requests worked on at a time."""
    current: int
    queued: int
    total: int

    @property
    def in_maintenance(self) -> bool:
        return self.status.startswith("MAINT")

    @property
    def up(self) -> bool:
        return self.status.startswith(("UP", "DRAIN", "no check"))


class Master:
    """A haproxy in master-worker mode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, command: str) -> str:
        """The answer to one command. Raises Gone where nobody listens."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(str(self._path))
                connection.sendall(command.encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as exc:
            raise Gone(f"haproxy does not answer at {self._path}: {exc}") from exc

    def workers(self) -> list[int]:
        """Process ids, the one that takes new connections first."""
        return [int(pid) for pid in _WORKER.findall(self.ask("show proc"))]

    def reloads(self) -> "Reloads":
        """How often the configuration was read again, and how often in a row without success."""
        found = _MASTER.search(self.ask("show proc"))
        if not found:
            raise Gone("haproxy's master says nothing of itself")
        return Reloads(int(found[1]), int(found[2]))

    def reload(self) -> None:
        """Begin to read the configuration again; a file that does not work leaves all as it is."""
        self.ask("reload")

    def tell(self, worker: int, command: str) -> str:
        """One worker's answer. Raises Gone where it has ended."""
        answer = self.ask(f"@!{worker} {command}")
        if answer.startswith("Can't find the target"):
            raise Gone(f"haproxy's worker {worker} has ended")
        return answer.strip()

    def hands_over(self, worker: int) -> bool:
        """Whether a successor would be given its table of conversations, where there are any.

        A worker gives it away once it has its predecessor's, or has waited five seconds for one in
        vain.
        """
        if not re.search(r"\bused:[1-9]", self.tell(worker, "show table")):
            return True
        flags = _SYNC.search(self.tell(worker, "show peers"))
        return flags is None or int(flags[1], 16) & _SYNCED == _SYNCED

    def description(self, worker: int) -> str:
        """What the configuration that the worker runs calls itself."""
        found = re.search(r"^description: (.*)$", self.tell(worker, "show info"), re.MULTILINE)
        return found[1].strip() if found else ""

    def servers(self, worker: int, target: str = "") -> list[Server]:
        """Every server a worker knows, or those of one target."""
        return [
            server
            for server in _servers(self.tell(worker, "show stat -1 4 -1"))
            if target in ("", server.target)
        ]

    def targets(self, worker: int) -> set[str]:
        """Every backend a worker knows, those without a server among them."""
        rows = csv.DictReader(
            self.tell(worker, "show stat -1 2 -1").removeprefix("# ").splitlines()
        )
        return {row["pxname"] for row in rows}

    def mapping(self, worker: int, file: str) -> dict[str, str]:
        """The entries of a map, as the worker has them."""
        words = [line.split(" ", 2) for line in self.tell(worker, f"show map {file}").splitlines()]
        return {
            found[1]: found[2] for found in words if len(found) == 3 and found[0].startswith("0x")
        }


def _servers(table: str) -> Iterator[Server]:
    for row in csv.DictReader(table.removeprefix("# ").splitlines()):
        yield Server(
            target=row["pxname"],
            name=row["svname"],
            address=row["addr"],
            status=row["status"],
            weight=int(row["uweight"] or 0),
            limit=int(row["slim"] or 0),
            current=int(row["scur"] or 0),
            queued=int(row["qcur"] or 0),
            total=int(row["stot"] or 0),
        )
