"""Child processes that end with their parent: started, waited for, measured, stopped with their
group.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil

from weighbridge.core import machine
from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.core.parent_death import die_with_parent


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def is_taken(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens on the port right now."""
    with socket.socket() as probe:
        # Connections of a server that has ended linger for a minute; they take the port from
        # nobody.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
        return False


def listens(group: int, port: int) -> bool:
    """Whether it is a process of this group that listens on the port."""
    for process in members(group):
        with contextlib.suppress(psutil.Error):
            if any(
                connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
                for connection in process.net_connections("tcp")
            ):
                return True
    return False


class Process:
    """A command in a process group of its own; the whole group ends with it.

    Use as a context manager. Must be started from a thread that outlives it: the kernel kills the
    child when the starting thread ends, so that nothing is left behind by a killed parent.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            self._popen = _start(name, argv, stream, cwd=cwd, env=env)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def status(self) -> int | None:
        """What it ended with, -9 where it was killed; None while it lives."""
        return self._popen.poll()

    def tail(self, lines: int = 8) -> str:
        """Return the last lines of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.strip().splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], timeout: float, poll: float = 0.1) -> float:
        """Wait until `ready()`; returns the seconds it took.

        Raises:
            Unavailable: the process died (at once, with the tail of its log) or time ran out.
        """
        started = time.monotonic()
        while True:
            if not self.alive():
                self._give_up(f"it ended with status {self._popen.returncode} before it was ready")
            if ready():
                return time.monotonic() - started
            if time.monotonic() - started > timeout:
                self._give_up(f"it was not ready within {timeout:.0f} s")
            time.sleep(poll)

    def stop(self, grace: float = 10.0) -> None:
        """Send SIGTERM to the process, then to what is left of its group, and SIGKILL to what that
        leaves.

        A server of several processes ends them itself, in its own order: signalled all at once, its
        workers would be gone from under the answers that it wants to finish.
        """
        # Listed while the first process lives: the others are waited for after it.
        family = members(self.pid)
        with contextlib.suppress(ProcessLookupError):
            self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(grace)
        self._signal_group(signal.SIGTERM)
        # One that did not end within its grace has had its time, and so have its workers.
        psutil.wait_procs(family, timeout=0.2 if self.alive() else grace)
        self._signal_group(signal.SIGKILL)
        self._popen.wait()

    def __enter__(self) -> "Process":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _give_up(self, wrong: str) -> None:
        raise Unavailable(
            f"starting {self.name}",
            f"{wrong}. Its log ends:\n{self.tail()}\n",
            f"whole log: {self.log}",
        )


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    status: int
    output: str
    """What it printed, standard output and standard error together."""

    def tail(self, lines: int = 3) -> str:
        """Return the last lines it printed, as one."""
        return one_line(" ".join(self.output.strip().splitlines()[-lines:]))


def tells_of_full_disk(output: str) -> bool:
    """Whether a program says that it found no room: in C's words, Python's or Rust's."""
    pattern = r"no space left on device|disk quota exceeded|os error (28|122)\b"
    return re.search(pattern, output, re.IGNORECASE) is not None


def run(
    name: str,
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Finished:
    """Run a command to its end, telling `on_line` each line it prints as it comes.

    It has a process group of its own, which ends when this call is interrupted or this process
    dies.

    Raises:
        Unavailable: it cannot be started. A status other than 0 is the caller's to judge.
    """
    popen = _start(name, argv, subprocess.PIPE, cwd=cwd, env=env)
    lines: list[str] = []
    with popen:
        try:
            for line in popen.stdout or ():
                lines.append(line)
                on_line(line.rstrip("\n"))
            status = popen.wait()
        except BaseException:
            os.killpg(popen.pid, signal.SIGKILL)
            raise
    return Finished(status, "".join(lines))


def _start(
    name: str,
    argv: Sequence[str | Path],
    output: IO[Any] | int,
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
) -> subprocess.Popen[str]:
    """Start a child in a process group of its own that dies with this thread; `output` takes all
    that it prints.
    """
    try:
        return subprocess.Popen(
            [str(argument) for argument in argv],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - it takes no lock
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as exc:
        raise Unavailable(
            f"starting {name}", str(exc), f"check that {argv[0]} is installed"
        ) from exc


def members(group: int) -> list[psutil.Process]:
    """Return every process of a process group."""
    processes = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(pid) == group:
                processes.append(psutil.Process(pid))
    return processes


def cpu_seconds(group: int) -> float:
    """Return the processor time that a process group has taken so far, with that of children which
    have ended and were waited for.
    """
    total = 0.0
    for process in members(group):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class _Sampler(ABC):
    """Samples on a thread of its own, from the beginning of its block to the end."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._done.set()
        self._thread.join()

    @abstractmethod
    def _sample(self) -> None: ...

    def _watch(self) -> None:
        while True:
            self._sample()
            if self._done.wait(self._interval):
                return


class PeakMemory(_Sampler):
    """Samples the memory of a process group until stopped: see `memory_of`."""

    def __init__(self, group: int, interval: float = 0.25) -> None:
        super().__init__(interval)
        self.bytes = 0
        self._group = group

    def _sample(self) -> None:
        pids = [process.pid for process in members(self._group)]
        self.bytes = max(self.bytes, memory_of(pids))


class LeastMemory(_Sampler):
    """Samples `machine.available_memory` until its block ends: what a process took is free again by
    then, and one that took too much has been killed.
    """

    def __init__(self, interval: float = 0.5) -> None:
        # A look takes 1.2 ms: with this interval 0.2 % of a core.
        super().__init__(interval)
        self.bytes = machine.available_memory()

    def _sample(self) -> None:
        self.bytes = min(self.bytes, machine.available_memory())


def memory_of(pids: Iterable[int]) -> int:
    """Return the bytes that processes would take if they ran alone on the machine.

    What they share with each other counts once. What others map of the same files counts whole:
    two engines that map one file of weights halve each other's share of it, and either would need
    all of it by itself.
    """
    own, shares = 0, defaultdict[str, int](int)
    largest = defaultdict[str, int](int)
    for pid in pids:
        for mapping in _mappings(pid):
            if mapping.file:
                shares[mapping.file] += mapping.share
                largest[mapping.file] = max(largest[mapping.file], mapping.resident)
            else:
                own += mapping.share
    # Where each of them touched another part, the shares tell more than the largest of them.
    return own + sum(max(shares[file], largest[file]) for file in shares)


@dataclass
class _Mapping:
    """A piece of a process's memory, in bytes."""

    file: str
    """Device, inode and offset of what is mapped; empty for memory of its own."""
    resident: int = 0
    share: int = 0
    """What is resident, divided by the number of processes that share it (PSS)."""


def _mappings(pid: int) -> Iterator[_Mapping]:
    """Yield the memory of a process piece by piece; nothing of one that has ended."""
    mapping: _Mapping | None = None
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/smaps").open() as lines:
        for line in lines:
            if line.startswith("Rss:") and mapping:
                mapping.resident = int(line.split()[1]) * 1024
            elif line.startswith("Pss:") and mapping:
                mapping.share = int(line.split()[1]) * 1024
            elif not line[0].isupper():  # an address, and no figure's name
                # As proc(5) has it: addresses, permissions, offset, device, inode, path.
                _, _, offset, device, inode, *_ = line.split(maxsplit=5)
                if mapping:
                    yield mapping
                mapping = _Mapping(f"{device} {inode} {offset}" if inode != "0" else "")
    if mapping:
        yield mapping
