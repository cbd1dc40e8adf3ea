"""The `weighbridge` command, which has what it starts begin warm as well.

Usage of its copies: ``python -m tests.warm.command FOLDER OWNER ARGUMENTS…``
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.warm.engines import WarmEngines
from tests.warm.scripts import WarmScripts
from tests.warm.services import WarmServices
from tests.warm.starts import ROOT, Origin, Started, importing

LIBRARIES = (
    "mlflow",
    "prefect.main",
    "prefect.server.api.server",
    "transformers.models.auto.modeling_auto",
    "trl.trainer.sft_trainer",
    "weighbridge.flows.release",
    # What `main` imports.
    "pytest",
    "filelock",
    "weighbridge.serving.engines.vllm",
)


class WarmCommand:
    """Runs one command at a time; what still runs at the end of the block is killed."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._test_run = [str(folder), str(owner)]
        self._origin = Origin(folder / "command.sock", owner, importing(*LIBRARIES))
        self._running: Started | None = None

    def __enter__(self) -> "WarmCommand":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def start(self, *arguments: str | Path, out: Path, err: Path) -> int:
        """Start it in the environment as it is now, with output to files; return its process id."""
        self._end()
        words = [*self._test_run, *map(str, arguments)]
        command = [sys.executable, "-m", "tests.warm.command", *words]
        for file in (out, err):
            file.write_text("")
        # Both may go to one file.
        with out.open("a") as output, err.open("a") as errors:
            self._running = self._origin.start(command, output, ROOT, os.environ, errors=errors)
        return self._running.pid

    def wait(self) -> int:
        """Return the status of what was started, once it has ended; negative: the signal's
        number.
        """
        assert self._running is not None
        return self._running.wait()

    def run(self, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run it to its end; what it prints is kept in the folder meanwhile."""
        out, err = folder / "stdout", folder / "stderr"
        self.start(*arguments, out=out, err=err)
        status = self.wait()
        return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

    def _end(self) -> None:
        """Kill what nobody waits for: its test has failed."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()


def main(folder: str, owner: str, *arguments: str) -> None:
    """Run the command."""
    from weighbridge.cli.main import main as weighbridge

    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as where it is watched
    test_run = Path(folder), int(owner)
    with WarmScripts(*test_run), WarmServices(*test_run), WarmEngines(*test_run):
        weighbridge([*arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
