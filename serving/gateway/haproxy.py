"""haproxy: where its program is, what it complains of, and its runtime socket.

The socket takes one command and gives one answer, of the master or through it of any of its
workers. A reload leaves the worker before running until its last request has ended, so there may be
several.
"""

import csv
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line

INSTALL = "install haproxy 2.6 or newer: apt-get install haproxy"
ALERT = "[ALERT]"
"""In the lines that tell why haproxy refuses, or ends."""
TIMEOUT = 10.0
_WORKER = re.compile(r"^(\d+)\s+worker\b", re.MULTILINE)
_SYNC = re.compile(r"\bflags=0x([0-9a-f]+) resync_timeout")
_SYNCED = 0b11
"""Flags of a worker that has a predecessor's table, or waits for none any more."""
_MASTER = re.compile(r"^\d+\s+master\s+(\d+) \[failed: (\d+)\]", re.MULTILINE)


class NotAnswering(Exception):
    """haproxy, or the worker that was asked, does not answer (any more)."""


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


def executable() -> str:
    """Return haproxy's path.

    Raises:
        Unavailable: it is not installed.
    """
    # Distributions put it where the PATH of a user who is not root does not look.
    folders = [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    path = shutil.which("haproxy", path=os.pathsep.join(folders))
    if path is None:
        raise Unavailable("starting the gateway", "haproxy is not installed", INSTALL)
    return path


def alerts(output: str) -> str:
    """Return what haproxy complains of, in one line; empty where it does not."""
    # Beside alerts haproxy prints warnings and notices, which are about something else; and in its
    # log stand the requests.
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith("{")]
    complaints = [line for line in lines if ALERT in line] or lines
    return one_line(" ".join(complaints[-4:]))[-600:]


class Master:
    """A haproxy in master-worker mode."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, command: str) -> str:
        """Return the answer to one command. Raises NotAnswering where nobody listens."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(str(self._path))
                connection.sendall(command.encode() + b"\n")
                connection.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as exc:
            raise NotAnswering(f"haproxy does not answer at {self._path}: {exc}") from exc

    def workers(self) -> list[int]:
        """Return the workers' process ids, that of the one that takes new connections first."""
        return [int(pid) for pid in _WORKER.findall(self.ask("show proc"))]

    def reloads(self) -> Reloads:
        """Return how often the configuration was read again, and how often in a row in vain."""
        counts = _MASTER.search(self.ask("show proc"))
        if not counts:
            raise NotAnswering("haproxy's master says nothing of itself")
        return Reloads(int(counts[1]), int(counts[2]))

    def reload(self) -> None:
        """Begin to read the configuration again; a file that does not work leaves all as it is."""
        self.ask("reload")

    def ask_worker(self, worker: int, command: str) -> str:
        """Return one worker's answer. Raises NotAnswering where it has ended."""
        # `@!PID`: the master passes the command on to the worker of this process id.
        answer = self.ask(f"@!{worker} {command}")
        if answer.startswith("Can't find the target"):
            raise NotAnswering(f"haproxy's worker {worker} has ended")
        return answer.strip()

    def can_hand_over(self, worker: int) -> bool:
        """Whether a successor would get the worker's table of conversations, where there are any.

        A worker gives its table away once it has its predecessor's, or has waited five seconds for
        that in vain.
        """
        # Of strings: the other tables count addresses, and each worker its own.
        conversations = r"\btype: string\b.*\bused:[1-9]"
        if not re.search(conversations, self.ask_worker(worker, "show table")):
            return True
        flags = _SYNC.search(self.ask_worker(worker, "show peers"))
        return flags is None or int(flags[1], 16) & _SYNCED == _SYNCED

    def description(self, worker: int) -> str | None:
        """Return what the configuration that the worker runs calls itself, None where it has no
        name.
        """
        info = self.ask_worker(worker, "show info")
        line = re.search(r"^description: (.*)$", info, re.MULTILINE)
        return line[1].strip() if line else None

    def servers(self, worker: int, target: str | None = None) -> list[Server]:
        """Return every server a worker knows, or those of one target."""
        # -1 4 -1: of any proxy, servers alone, any server.
        servers = _servers(self.ask_worker(worker, "show stat -1 4 -1"))
        return [server for server in servers if target in (None, server.target)]

    def targets(self, worker: int) -> set[str]:
        """Return every backend a worker knows, those without a server among them."""
        # -1 2 -1: of any proxy, backends alone.
        rows = csv.DictReader(
            self.ask_worker(worker, "show stat -1 2 -1").removeprefix("# ").splitlines()
        )
        return {row["pxname"] for row in rows}

    def mapping(self, worker: int, file: str) -> dict[str, str]:
        """Return the entries of a map, as the worker has them."""
        # Each line: its address, the key, the value.
        lines = self.ask_worker(worker, f"show map {file}").splitlines()
        entries = [line.split(" ", 2) for line in lines if line.startswith("0x")]
        return {entry[1]: entry[2] for entry in entries if len(entry) == 3}

    def patterns(self, worker: int, file: str) -> set[str] | None:
        """Return the entries of a list, as the worker has them; None where it has no such list."""
        answer = self.ask_worker(worker, f"show acl {file}")
        if answer.startswith("Unknown ACL"):
            return None
        # Each line: its address, the entry.
        return {line.split(" ", 1)[1] for line in answer.splitlines() if line.startswith("0x")}


def _servers(table: str) -> Iterator[Server]:
    for row in csv.DictReader(table.removeprefix("# ").splitlines()):
        yield Server(
            target=row["pxname"],
            name=row["svname"],
            address=row["addr"],
            status=row["status"],
            # As it was set; `weight` is what is in effect at the moment.
            weight=int(row["uweight"] or 0),
            limit=int(row["slim"] or 0),
            current=int(row["scur"] or 0),
            queued=int(row["qcur"] or 0),
            total=int(row["stot"] or 0),
        )
