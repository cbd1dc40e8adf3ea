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
        # The host name alone is what older records have.
        if where not in (machine(), socket.gethostname()):
            return None
        # Another process may have the number now; the identity is exact to a tenth of a second.
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return None
