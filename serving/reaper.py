"""Run a command that cannot outlive its parent and holds none of its parent's sockets.

Called as a script, by any Python, with nothing but the standard library::

    python -I reaper.py [--parent WHO] [--await-port HOST PORT] [--inherit PATTERNS]
        [--secrets FILE] [--mark MARK] [--kill-leftovers] [--reap-group] -- COMMAND …

The command takes this process's place, so no process is added.

``--parent``          whoever started this, by process id, or `session`: the leader of its session,
                      as supervisord is of what it starts. Where that has ended before the kernel
                      could be asked to end this process with it, nothing is started.
``--await-port``      start the command once nobody listens there any more: a successor loads
                      everything it can while the one before still serves.
``--inherit``         drop every environment variable whose name none of these patterns matches.
``--secrets``         read environment variables from a file, as JSON: everybody can read a command
                      line, and only its owner this file.
``--mark``            set this mark in the environment of the command, and so of all it starts.
``--kill-leftovers``  first kill what still carries the mark: children of a command before this one
                      that was killed.
``--reap-group``      when the command has ended, however it ended, kill what is left of its process
                      group: a server of several processes leaves them behind when its first one is
                      killed.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import select
import signal
import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

# An isolated Python knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]

from weighbridge.core.parent_death import die_with_parent

_POLL = 0.02
MARK = "WEIGHBRIDGE_PROGRAM"
TRACKER_SECONDS = 5.0
"""Seconds that Python's resource trackers get to remove shared memory of processes that were
killed.
"""


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Else connections that ended just now would count: servers do not mind them.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def marked(mark: str) -> Iterator[int]:
    """Yield the ids of this user's processes that carry the mark, without this process.

    One that ends with a colon stands for every mark that begins with it.
    """
    wanted = f"{MARK}={mark}".encode()
    matches = bytes.startswith if mark.endswith(":") else bytes.__eq__
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if any(
                    matches(entry, wanted)
                    for entry in (folder / "environ").read_bytes().split(b"\0")
                ):
                    yield int(folder.name)


def kill_marked(mark: str) -> None:
    """Kill every process that carries the mark."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def keep_matching(patterns: list[str]) -> None:
    """Drop every environment variable whose name none of these patterns matches."""
    for name in list(os.environ):
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            del os.environ[name]


def reap_group_after(pid: int) -> None:
    """Leave a process behind that waits for the end of process `pid` and then kills what is left of
    its group.
    """
    if os.fork():
        os.wait()
        return
    # Forked twice, so that the command gets no child that it did not start; in a session of its
    # own, so that no signal meant for the command's group ends it.
    os.setsid()
    if os.fork() == 0:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [])
        _kill_group(pid)
    os._exit(0)


def _kill_group(group: int) -> None:
    deadline = time.monotonic() + TRACKER_SECONDS
    while (members := _members(group)) and time.monotonic() < deadline:
        for pid, command in members.items():
            if b"resource_tracker" not in command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _members(group: int) -> dict[int, bytes]:
    """Return the command lines of a group's living processes, by process id."""
    commands = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if folder.name.isdigit() and os.getpgid(int(folder.name)) == group:
                # A zombie's is empty.
                commands[int(folder.name)] = (folder / "cmdline").read_bytes()
    return {pid: command for pid, command in commands.items() if command}


def _parent(who: str) -> int:
    if who == "session":
        return os.getsid(0)
    return int(who) if who else os.getppid()


def main(arguments: list[str]) -> None:
    """Do what the options say, then become the command."""
    split = arguments.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", default="")
    parser.add_argument("--await-port", nargs=2)
    parser.add_argument("--inherit")
    parser.add_argument("--secrets", type=Path)
    parser.add_argument("--mark")
    parser.add_argument("--kill-leftovers", action="store_true")
    parser.add_argument("--reap-group", action="store_true")
    options, command = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    die_with_parent(_parent(options.parent))
    # Out of the parent's group: a SIGTERM to that is the parent's to act on, which drains first and
    # ends the command then.
    if os.getpgrp() != os.getpid():
        os.setsid()
    # Sockets of the parent's that the command would keep open, and so their ports taken.
    os.closerange(3, 4096)
    if options.inherit is not None:
        keep_matching(options.inherit.split(","))
    if options.secrets:
        os.environ.update(json.loads(options.secrets.read_text()))
    if options.mark:
        os.environ[MARK] = options.mark
        if options.kill_leftovers:
            kill_marked(options.mark)
    if options.await_port:
        host, port = options.await_port[0], int(options.await_port[1])
        while not port_is_free(host, port):
            time.sleep(_POLL)
    if options.reap_group:
        reap_group_after(os.getpid())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
