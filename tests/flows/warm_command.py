"""The `weighbridge` command in processes that begin with its libraries imported.

To import Prefect, MLflow, PyTorch and transformers is most of what the command costs where models
are tiny. Here its process begins as a copy of one that has imported them; all else is its own:
arguments, environment, output, session, signals and end. Services that it starts, and servers of
engines that it measures, begin so too (`warm_services`, `warm_engines`).
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

from tests.warm_engines import WarmEngines
from tests.warm_scripts import WarmScripts
from tests.warm_services import WarmServices

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "mlflow",
    "prefect.main",
    "prefect.server.api.server",
    "transformers.models.auto.modeling_auto",
    "trl.trainer.sft_trainer",
    "weighbridge.flows.release",
)


class WarmCommand:
    """Runs one command at a time; use as a context manager."""

    def __init__(self, services: WarmServices) -> None:
        self._services = services

    def __enter__(self) -> "WarmCommand":
        self._running: int | None = None
        self._origin = subprocess.Popen(
            [sys.executable, "-m", "tests.flows.warm_command"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._origin.communicate()

    def start(self, *arguments: str | Path, out: Path, err: Path) -> int:
        """Start it in the environment as it is now, with output to files; return its process id."""
        self._end()
        for file in (out, err):
            file.write_text("")
        order = {
            "arguments": [*map(str, arguments)],
            "environment": dict(os.environ),
            "output": [str(out), str(err)],
            "services": [str(self._services.folder), self._services.owner],
        }
        assert self._origin.stdin is not None
        print(json.dumps(order), file=self._origin.stdin, flush=True)
        self._running = self._answer()
        return self._running

    def wait(self) -> int:
        """Return the status of what was started, once it has ended; negative: the signal's
        number.
        """
        status = self._answer()
        self._running = None
        return status

    def run(self, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run it to its end; what it prints is kept in the folder meanwhile."""
        out, err = folder / "stdout", folder / "stderr"
        self.start(*arguments, out=out, err=err)
        status = self.wait()
        return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

    def _answer(self) -> int:
        assert self._origin.stdout is not None
        return int(self._origin.stdout.readline())

    def _end(self) -> None:
        """Kill what nobody waits for: its test has failed."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._running, signal.SIGKILL)
            self.wait()


def serve(orders: TextIO, answers: TextIO) -> dict[str, Any] | None:
    """Begin a process for every order; answer with its id and then with its status.

    Return the order in each of these processes, and None here, at the end of the orders.
    """
    for line in orders:
        order: dict[str, Any] = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(order)
            return order
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
    return None


def become(order: dict[str, Any]) -> None:
    """Make this process what a new one would be: its session, its environment, its output."""
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])
    flags = os.O_WRONLY | os.O_APPEND  # both may go to one file
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, *(os.open(name, flags) for name in order["output"]))):
        os.dup2(file, number)
        os.close(file)


def main() -> None:
    """Take orders, one a line, until there are no more; run the command in the copies."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # Else each copy looks through all of it when it ends, which takes seconds.
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as where it is watched
    order = serve(sys.stdin, answers)
    if order is not None:
        from weighbridge.cli.main import main as weighbridge

        folder, owner = order["services"]
        test_run = Path(folder), owner
        with WarmScripts(*test_run), WarmServices(*test_run), WarmEngines(*test_run):
            weighbridge(order["arguments"])


if __name__ == "__main__":
    main()
