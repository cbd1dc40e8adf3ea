"""Services in processes that begin with their libraries imported, and supervisords, whose programs
begin so then: as copies of a process that has imported them (`warm_origin`).

To import Prefect's server, MLflow's or BentoML is most of what a start of them costs. All else is a
copy's own: command line, environment, folder, output, process group, signals and end. Whatever does
not ask for this starts the real way: everything that tests/test_packaging.py does, which has the
whole platform up and serves a Bento.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Self

import pytest
from filelock import FileLock

from tests.warm_process import PROGRAMS, module_in
from weighbridge.core import processes

ROOT = Path(__file__).resolve().parents[1]
COMMAND_LINE_BYTES, ENVIRONMENT_BYTES = 1 << 14, 1 << 16
"""Room for command lines and environments of services, in /proc."""
VARIABLES = {
    # As our commands and services set them, before they import MLflow.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    # Libraries that begin threads when they are imported.
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


class WarmStarts(ABC):
    """Has processes of one kind begin warm within the block, others as they do.

    All workers of a test run have one origin for the same libraries, which the first of them begins
    that needs it, and which ends with the owner.
    """

    def __init__(self, folder: Path, owner: int) -> None:
        self.folder = folder
        self.owner = owner
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        self._start_cold = processes._start
        self._patch.setattr(processes, "_start", self.start)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    @abstractmethod
    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        output: IO[Any] | int,
        *,
        cwd: Path | None,
        env: Mapping[str, str] | None,
    ) -> Any:
        """Stand for what starts every process of `weighbridge.core.processes`."""


class WarmServices(WarmStarts):
    """Services, and supervisords with theirs."""

    def __enter__(self) -> Self:
        instead = SimpleNamespace(run=self.run, DEVNULL=subprocess.DEVNULL)
        self._patch.setattr("weighbridge.serving.supervisor.subprocess", instead)
        return super().__enter__()

    def run(
        self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], **_: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Stand for `subprocess.run` where supervisord is started."""
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as output:
            started = self.begin(command, output, cwd, env)
        with os.fdopen(reading, errors="replace") as stream:
            text = stream.read()
        return subprocess.CompletedProcess(command, started.wait(), "", text)

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        output: IO[Any] | int,
        *,
        cwd: Path | None,
        env: Mapping[str, str] | None,
    ) -> Any:
        command = [str(word) for word in argv]
        if (
            isinstance(output, int)
            or command[0] != sys.executable
            or module_in(command) not in PROGRAMS
        ):
            return self._start_cold(name, argv, output, cwd=cwd, env=env)
        return self.begin(command, output, cwd, {**os.environ, **(env or {})})

    def begin(
        self,
        command: Sequence[str],
        output: IO[Any],
        folder: Path | None,
        environment: Mapping[str, str],
    ) -> "Started":
        """Begin a module of Python with both outputs to a file."""
        connection = connect(self.folder / "warm.sock", self._begin_origin)
        send_order(connection, command, output.fileno(), folder, environment)
        return Started(connection)

    def _begin_origin(self, listener: int) -> None:
        named = ("PREFECT_", "MLFLOW_", "BENTOML_", "WEIGHBRIDGE_")
        neutral = {key: value for key, value in os.environ.items() if not key.startswith(named)}
        words = [str(listener), str(self.owner), "." * COMMAND_LINE_BYTES]
        command = [sys.executable, "-m", "tests.warm_origin", *words]
        environment = {**neutral, **VARIABLES, "PADDING": "." * ENVIRONMENT_BYTES}
        begin_origin(command, self.folder / "warm.log", environment, listener)


def connect(address: Path, begin_origin: Callable[[int], None]) -> socket.socket:
    """Return a connection to the origin that listens there, begun first where none does."""
    connection = socket.socket(socket.AF_UNIX)
    with FileLock(address.with_suffix(".lock")):
        if not address.exists():
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(address))
                listener.listen(64)
                begin_origin(listener.fileno())
    connection.connect(str(address))
    return connection


def begin_origin(
    command: Sequence[str], log: Path, environment: Mapping[str, str], listener: int
) -> None:
    """Begin an origin, whose first process returns once the origin is one of its own."""
    with log.open("w") as output:
        subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            pass_fds=[listener],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=True,
        )


def send_order(
    connection: socket.socket,
    command: Sequence[str],
    output: int,
    folder: Path | None,
    environment: Mapping[str, str],
) -> None:
    """Order a process of an origin, whose output goes to a file descriptor."""
    order = {"command": command, "folder": str(folder or Path.cwd()), "environment": environment}
    socket.send_fds(connection, [json.dumps(order).encode()], [output])


class Started:
    """As much of `subprocess.Popen` as is asked of it; its process ends with this one."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._answers = connection.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready, _, _ = select.select([self._connection], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
