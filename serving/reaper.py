"""Run a command that cannot outlive its parent and holds none of its parent's sockets.

Called as a script, by any Python, with nothing but the standard library::

    python -I reaper.py [--await-port HOST PORT] [--secrets FILE] [--mark MARK] [--sweep] [--guard]
        -- COMMAND …

The command takes this process's place, so no process is added.

``--await-port``  it starts once nobody listens there any more: a successor loads everything it can
                  while the one before still serves.
``--secrets``     environment variables as JSON in a file: a command line is everybody's to read, a
    file is not.
``--mark``        the command and all it starts carry this mark in their environment.
``--sweep``       what still carries the mark is killed first: the children of one before that died
    without a word.
``--guard``       what is left of the command's process group when it has ended, however it ended,
                  is killed: a server of several processes leaves them behind when its first one is
                  killed.
"""

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL = 0.02
MARK = "WEIGHBRIDGE_PROGRAM"
CLEANING_UP = 5.0
"""Seconds that Python's resource trackers get to remove shared memory of processes that were
killed.
"""


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as the thread that started it ends."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def marked(mark: str) -> Iterator[int]:
    """Ids of the processes of this user that carry the mark, or one that begins with it, without
    this process.
    """
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if any(
                    entry.startswith(wanted)
                    for entry in (folder / "environ").read_bytes().split(b"\0")
                ):
                    yield int(folder.name)


def sweep(mark: str) -> None:
    """Kill whatever carries the mark."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def guard(pid: int) -> None:
    """Leave a process behind that waits for the end of process `pid` and then ends what is left of
    its group.
    """
    if os.fork():
        os.wait()
        return
    # Twice, and in a session of its own: no child that the command does not know, and no signal
    # meant for its group.
    os.setsid()
    if os.fork() == 0:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [])
        _end_group(pid)
    os._exit(0)


def _end_group(group: int) -> None:
    deadline = time.monotonic() + CLEANING_UP
    while (left := _members(group)) and time.monotonic() < deadline:
        for pid, command in left.items():
            if b"resource_tracker" not in command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _members(group: int) -> dict[int, bytes]:
    """Command line by id of the living processes of a group."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if folder.name.isdigit() and os.getpgid(int(folder.name)) == group:
                # A zombie's is empty.
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    return {pid: command for pid, command in found.items() if command}


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--await-port", nargs=2)
    parser.add_argument("--secrets", type=Path)
    parser.add_argument("--mark", default="")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--guard", action="store_true")
    options, command = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    die_with_parent()
    # A SIGTERM to its parent's group is the parent's to act on: it drains first and ends the
    # command then.
    if os.getpgrp() != os.getpid():
        os.setsid()
    os.closerange(3, 4096)
    if options.secrets:
        os.environ.update(json.loads(options.secrets.read_text()))
    if options.mark:
        os.environ[MARK] = options.mark
    if options.sweep:
        sweep(options.mark)
    if options.await_port:
        host, port = options.await_port[0], int(options.await_port[1])
        while not port_is_free(host, port):
            time.sleep(_POLL)
    if options.guard:
        guard(os.getpid())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
