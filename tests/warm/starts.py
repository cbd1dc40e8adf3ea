"""To have processes begin as copies of an origin, for those who start them."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import pytest
from filelock import FileLock

from weighbridge.core import processes

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("origin.py")
COMMAND_LINE_BYTES, ENVIRONMENT_BYTES = 1 << 14, 1 << 16
"""Room for command lines and environments of copies, in /proc."""
NOT_SHARED = ("PREFECT_", "MLFLOW_", "BENTOML_", "WEIGHBRIDGE_", "AWS_", "HF_ENDPOINT")
"""How variables begin that differ from test to test: nothing may be imported under them."""


class WarmStarts(ABC):
    """Has processes of one kind begin warm within the block, others as they do.

    Args:
        folder: that all workers of a test run share.
        owner: id of the process that outlives them.
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
    def origin_of(self, command: list[str]) -> "Origin | None":
        """Return what a command is to begin as a copy of; None: it begins as it does anyway."""

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
        command = [str(word) for word in argv]
        if (origin := self.origin_of(command)) is None:
            return self._start_cold(name, argv, output, cwd=cwd, env=env)
        return origin.start(command, output, cwd, {**os.environ, **(env or {})})


@dataclass(frozen=True)
class Origin:
    """An origin, begun by the first of a test run that starts a copy of it.

    It has the environment of this first copy, but for what is `NOT_SHARED`.
    """

    address: Path
    owner: int
    imports: str
    """The code that it runs before anything else."""
    python: tuple[str, ...] = (sys.executable, "-P")
    """Of the environment, with its options."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Further ones under which it imports."""

    def start(
        self,
        command: Sequence[str],
        output: IO[Any] | int,
        folder: Path | None,
        environment: Mapping[str, str],
        *,
        errors: IO[Any] | None = None,
    ) -> "Started":
        """Start a copy as this command, of the same Python.

        Args:
            command: as `subprocess` takes it.
            output: file for both outputs; `subprocess.PIPE`: they are to be read at `stdout`.
            folder: the working directory; None: that of this process.
            environment: all of it.
            errors: another file for the error output.
        """
        order = {
            "command": command,
            "folder": str(folder or Path.cwd()),
            "environment": dict(environment),
        }
        with contextlib.ExitStack() as stack:
            stdout = None
            if isinstance(output, int):
                reading, writing = os.pipe()
                stdout = os.fdopen(reading, encoding="utf-8", errors="replace")
                output = stack.enter_context(os.fdopen(writing, "w"))
            outputs = [output.fileno(), (errors or output).fileno()]
            try:
                connection = self._connect(environment)
                socket.send_fds(connection, [json.dumps(order).encode()], outputs)
                return Started(connection, stdout)
            except (OSError, ValueError) as exc:
                log = self.address.with_suffix(".log")
                raise RuntimeError(f"the origin has ended: see {log}") from exc

    def _connect(self, environment: Mapping[str, str]) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        with FileLock(self.address.with_suffix(".lock")):
            if not self.address.exists():
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(self.address))
                    listener.listen(64)
                    self._begin(listener.fileno(), environment)
        connection.connect(str(self.address))
        return connection

    def _begin(self, listener: int, environment: Mapping[str, str]) -> None:
        shared = {
            name: value for name, value in environment.items() if not name.startswith(NOT_SHARED)
        }
        words = [str(PROGRAM), str(listener), str(self.owner), self.imports]
        with self.address.with_suffix(".log").open("w") as log:
            # Its first process returns once the origin is one of its own.
            subprocess.run(
                [*self.python, *words, "." * COMMAND_LINE_BYTES],
                cwd=ROOT,
                env={**shared, **self.variables, "PADDING": "." * ENVIRONMENT_BYTES},
                pass_fds=[listener],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )


class Started:
    """As much of `subprocess.Popen` as is asked of it; its process ends with this one."""

    def __init__(self, connection: socket.socket, stdout: IO[str] | None) -> None:
        self.stdout = stdout
        self._connection = connection
        self._answers = connection.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stdout:
            self.stdout.close()
        self.wait()

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

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def importing(*modules: str) -> str:
    """Return the code that imports modules."""
    return f"import {', '.join(modules)}"
