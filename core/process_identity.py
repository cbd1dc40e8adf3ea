"""What tells a process apart from every other one, on whichever machine."""

import os
import socket
from functools import cache
from pathlib import Path

import psutil

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/self/ns/pid")


@cache
def machine() -> str:
    """Return what all processes have in common whose numbers can be looked up here.

    Host names do not tell it: containers share them, and each has process numbers of its own.
    """
    parts = [socket.gethostname()]
    # Where the system has no such files, its host name has to do.
    if _BOOT.exists() and _NAMESPACE.exists():
        parts += [_BOOT.read_text()[:8], str(_NAMESPACE.stat().st_ino)]
    return ".".join(parts)


def identity() -> str:
    """Return machine, number and start of this process: a number alone is used again."""
    return f"{machine()} {os.getpid()} {psutil.Process().create_time():.1f}"


def is_gone(process: str) -> bool | None:
    """Whether the process of an `identity` has ended; None where that cannot be looked up here."""
    try:
        where, pid, started = process.split()
        # The identity is exact to a tenth of a second.
        return has_ended(where, int(pid), float(started), within=1.0)
    except ValueError:
        return None


def has_ended(where: str, pid: int, started: float, within: float) -> bool | None:
    """Whether a process has ended; None where that cannot be looked up here.

    Args:
        where: its `machine`.
        pid: its number there, which another process may have now.
        started: when it began, as Unix time.
        within: seconds to which that is exact.
    """
    # The host name alone is what older records have.
    if where not in (machine(), socket.gethostname()):
        return None
    try:
        return abs(psutil.Process(pid).create_time() - started) >= within
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return None
