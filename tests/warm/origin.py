"""An origin: a process that has imported libraries, and of which copies begin as commands.

Usage: ``python tests/warm/origin.py LISTENER OWNER IMPORTS PADDING``: run the code IMPORTS, then
take orders at the listening socket, a file descriptor, until the owner, a process, ends. An order
is `command`, `folder` and `environment` in JSON, with the descriptors of both outputs. The padding
is room for the copies' command lines. The standard library alone, for it runs in any environment.
"""

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
from tests.warm import exec_with_imports  # noqa: E402 - found by the line above

sys.path.remove(ROOT)


class Copies:
    """Begins a copy for each connection, and ends it where the other side hangs up before it ends.

    Answers with its process id and, when it has ended, with its status.
    """

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._running: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._watch(listener.fileno(), self._begin)
        self._watch(os.pidfd_open(owner), self._end)

    def serve(self) -> NoReturn:
        """Take orders until the owner ends."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _begin(self) -> None:
        connection, _ = self._listener.accept()
        text, outputs, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if (pid := os.fork()) == 0:
            start(json.loads(text), outputs)
        for output in outputs:
            os.close(output)
        # Who asked may be killed by now: the copy ends with the connection, below.
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"%d\n" % pid)
        self._running.add(pid)
        process = os.pidfd_open(pid)
        self._watch(process, partial(self._ended, pid, process, connection))
        self._watch(connection.fileno(), partial(self._kill, pid))

    def _ended(self, pid: int, process: int, connection: socket.socket) -> None:
        _, status = os.waitpid(pid, 0)
        self._running.discard(pid)
        for file in (process, connection.fileno()):
            self._selector.unregister(file)
        os.close(process)
        with connection, contextlib.suppress(BrokenPipeError):
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _end(self) -> NoReturn:
        for pid in self._running:
            self._kill(pid)
        os._exit(0)

    def _watch(self, file: int, react: Callable[[], None]) -> None:
        self._selector.register(file, selectors.EVENT_READ, react)


def start(order: Mapping[str, Any], outputs: Sequence[int]) -> NoReturn:
    """Be the process that was asked for."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
    os.closerange(3, 4096)
    os.chdir(order["folder"])
    exec_with_imports.become(order["command"], order["environment"])


def main(listener: int, owner: int, imports: str) -> None:
    """Import, then serve; return to who started this at once."""
    if os.fork():
        os._exit(0)
    os.setsid()
    exec_with_imports.path[:] = sys.path
    # Of thousands of modules none becomes garbage.
    gc.disable()
    exec(imports, {})  # noqa: S102 - code of the tests
    # Else each copy looks through all of it when it looks for garbage.
    gc.freeze()
    gc.enable()
    Copies(socket.socket(fileno=listener), owner).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
