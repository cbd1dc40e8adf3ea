"""A worker of pytest-xdist that begins as a copy of a process which has collected the tests.

Every worker imports all test modules, and with them PyTorch, Prefect and MLflow: that is done once
for all workers of a test run. All else is a worker's own. For Makefile::

    pytest --dist loadfile --tx "3*popen//python=python -m tests.warm.xdist_worker"

Three workers that each import for themselves take 60 CPU s until their first test, so they take 32.
"""

import contextlib
import gc
import importlib
import io
import os
import select
import signal
import socket
import sys
import time
import types
from pathlib import Path
from typing import Any

SOCKET = Path(".pytest_cache") / "workers.sock"
"""Relative, since the kernel takes no long ones; under the folder in which a test run goes on."""
LIBRARIES = ("transformers.trainer", "transformers.models.llama.modeling_llama", "peft")
"""What tests import when they run, and takes seconds."""


def main() -> None:
    """Have the origin begin a copy with this process's streams, and end when the copy does."""
    controller = os.getppid()
    address = SOCKET.with_suffix(f".{controller}.sock")
    address.parent.mkdir(exist_ok=True)
    # Whoever binds it first begins the origin.
    with socket.socket(socket.AF_UNIX) as listener, contextlib.suppress(OSError):
        listener.bind(str(address))
        listener.listen()
        if os.fork() == 0:
            serve(listener, controller, address)
    with socket.socket(socket.AF_UNIX) as connection:
        connect(connection, address)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.recv(1)


def connect(connection: socket.socket, address: Path) -> None:
    for _ in range(300):
        try:
            connection.connect(str(address))
        except ConnectionRefusedError:  # bound, and nobody listens yet
            time.sleep(0.01)
        else:
            return
    # A test run that was killed has left its address: a worker like any other.
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


def serve(listener: socket.socket, controller: int, address: Path) -> None:
    """Collect the tests, then begin copies until the test run ends."""
    # Of the same process group as the workers, which end by it; it ends when they have.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a copy ended
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    collect()
    gc.freeze()  # else each copy looks through all of it
    ended = os.pidfd_open(controller)
    watched: list[Any] = [listener, ended]
    while listener in (ready := select.select(watched, [], [])[0]):
        connection, _ = listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        if os.fork() == 0:
            listener.close()
            os.close(ended)
            work(streams)
        for stream in (connection.detach(), *streams):
            os.close(stream)
    assert ready == [ended]
    address.unlink()
    os._exit(0)


def collect() -> None:
    import pytest

    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "--quiet", "-p", "no:cacheprovider"])
    for name in LIBRARIES:
        importlib.import_module(name)


def work(streams: list[int]) -> None:
    """Be what `python -c` makes of execnet's first line."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww")
    )
    sys.argv = ["-c"]
    sys.modules["__main__"] = command = types.ModuleType("__main__")
    exec(eval(sys.stdin.readline()), vars(command))  # noqa: S102, S307 - it is our own controller's
    sys.exit()


if __name__ == "__main__":
    main()
