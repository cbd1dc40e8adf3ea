"""Serve a Bento as `bentoml serve` does, whose own first process is left out.

That one imports BentoML to start a worker, which imports it again, and then only waits for its end:
it takes as much time and memory as the worker. Here the worker's parent is a process with nothing
but the standard library. It ends with its worker: whoever started it starts it again.

Usage: ``python -P -m weighbridge.serving.bento_launcher PYTHON FOLDER HOST PORT``
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from weighbridge.core.parent_death import die_with_parent

WORKER: Final = "_bentoml_impl.worker.service"
"""BentoML's module for a worker, which its documentation does not name."""
BACKLOG: Final = 2048
"""BentoML's own."""
USAGE_ERROR: Final = 2
"""How BentoML's worker ends when it does not know an option; nothing of it has begun then."""


def main(python: str, folder: str, host: str, port: str) -> int:
    """Serve until the worker ends, or this process is told to; return the worker's exit status.

    Args:
        python: that has BentoML.
        folder: of the Bento.
        host: to listen at.
        port: to listen at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, int(port)), family=family, backlog=BACKLOG) as listener,
        tempfile.TemporaryDirectory(prefix="weighbridge-") as figures,
    ):
        status = _run_worker(python, folder, listener, figures)
    if status == USAGE_ERROR:
        print(f"BentoML has another {WORKER} than is known: `bentoml serve` it is", file=sys.stderr)
        bentoml = Path(python).with_name("bentoml")
        os.execv(bentoml, [str(bentoml), "serve", folder, "--host", host, "--port", port])
    return status


def _run_worker(python: str, folder: str, listener: socket.socket, figures: str) -> int:
    command = [python, "-m", WORKER, folder, "--fd", str(listener.fileno())]
    command += ["--backlog", str(BACKLOG), "--worker-id", "1"]
    # Told to end before there is anything to pass that on to.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    worker = subprocess.Popen(
        command,
        # A Bento's files are read from where it lies.
        cwd=folder,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": figures},
        stdin=subprocess.DEVNULL,
        pass_fds=[listener.fileno()],
        preexec_fn=partial(_begin, os.getpid()),  # noqa: PLW1509 - it takes no lock
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end(worker))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT])
    # As a shell says it: by a negative status the signal's number could not be told.
    status = worker.wait()
    return status if status >= 0 else 128 - status


def _begin(parent: int) -> None:
    """Prepare the worker's process: it ends with its parent, and takes signals."""
    die_with_parent(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGINT])


def _end(worker: "subprocess.Popen[bytes]") -> None:
    """Pass SIGTERM on to the worker and its engine, which may both have answers to finish."""
    for pid in (worker.pid, *_children(worker.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _children(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has ended
            yield from map(int, thread.read_text().split())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
