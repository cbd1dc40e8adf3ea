"""A process that has imported what our services import: each copy of it begins as one of them.

A supervisord among the copies starts its programs as copies of itself (`warm_process`).

Usage: ``python -m tests.warm_origin LISTENER OWNER PADDING``: take orders at the listening socket,
a file descriptor, until the owner, a process, ends. `warm_services` starts it.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tests import warm_bento, warm_process

LIBRARIES = (
    "supervisor.supervisord",
    "uvicorn",  # before MLflow's server, which looks whether it is there
    "prefect.main",
    "prefect.cli",
    "prefect.server.api.server",
    "prefect.workers.process",
    "weighbridge.flows.prefect_platform_server",
    "weighbridge.deployer.deployer",
    "weighbridge.services.watchdog",
    "mlflow.cli",
    "mlflow.server.fastapi_app",
    "bentoml._internal.bento.bento",
    "_bentoml_sdk",
    "_bentoml_impl.server.app",
)
READ_ENVIRONMENT = ("mlflow.server", "prometheus_client", "prefect.main")
"""Modules that go by the environment when they are imported: every copy imports them itself."""


class Origin:
    """Begins a copy for each connection, and ends it where the other side hangs up before it ends.

    Answers with its process id and, when it has ended, with its status.
    """

    def __init__(self, listener: socket.socket, owner: int) -> None:
        self._listener = listener
        self._owner = os.pidfd_open(owner)
        self._running: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._watch(listener.fileno(), self._begin)
        self._watch(self._owner, self._end)

    def serve(self) -> NoReturn:
        """Take orders until the owner ends."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _begin(self) -> None:
        connection, _ = self._listener.accept()
        text, [output], _, _ = socket.recv_fds(connection, 1 << 20, 1)
        if (pid := os.fork()) == 0:
            start(json.loads(text), output)
        os.close(output)
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


def start(order: Mapping[str, Any], output: int) -> NoReturn:
    """Be the process that was asked for."""
    _leave(order, output)
    warm_process.become(order["command"], order["environment"])


def begin(order: Mapping[str, Any], output: int) -> None:
    """Make this process what a new one is before its program begins, but for its place in /proc."""
    _leave(order, output)
    os.environ.clear()
    os.environ.update(order["environment"])
    warm_process.take_signals_as_a_new_process()
    warm_process.open_streams()


def _leave(order: Mapping[str, Any], output: int) -> None:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(output, number)
    os.closerange(3, 4096)
    os.chdir(order["folder"])


def main(listener: int, owner: int) -> None:
    """Import everything, then serve; return to who started this at once."""
    if os.fork():
        os._exit(0)
    os.setsid()
    warm_process.path[:] = sys.path[1:]
    warm_bento.note_what_is_installed()
    for name in LIBRARIES:
        importlib.import_module(name)
    warm_process.forget(
        lambda name: any(f"{name}.".startswith(f"{package}.") for package in READ_ENVIRONMENT)
    )
    warm_process.reset_logging()
    warm_process.configure_mlflows_logging()
    [_] = Path("/proc/self/task").iterdir()  # a copy would not have any other thread
    # Else each copy looks through all of it when it looks for garbage.
    gc.freeze()
    Origin(socket.socket(fileno=listener), owner).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
