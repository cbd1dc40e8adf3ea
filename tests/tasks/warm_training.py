"""Fine-tunes in processes that begin with the trainer's libraries imported.

To import PyTorch and what rests on it is most of what such a process costs where models are tiny.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.warm_process import status_of
from tests.warm_scripts import ScriptOrigin, StartedScript
from tests.warm_services import ROOT
from weighbridge.core import processes
from weighbridge.core.processes import Finished

LIBRARIES = (
    "torch.distributed.run",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "peft",
    "weighbridge.tasks.training",
    "weighbridge.tasks.merging",
)


def ignore_line(_: str) -> None:
    """Take no note of it."""


class WarmTraining:
    """Runs a script, or torchrun with all of its ranks."""

    def __init__(self, folder: Path, owner: int) -> None:
        self._origin = ScriptOrigin(folder / "training.sock", owner, LIBRARIES)

    def script(self, *words: str, on_line: Callable[[str], None] = ignore_line) -> Finished:
        """Run a script; end it where taking a line of its output raises something."""
        command = [sys.executable, "-P", *words]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "_start", self._start)
            return processes.run("a fine-tune", command, on_line=on_line)

    def torchrun(
        self, name: str, command: Sequence[str], *, on_line: Callable[[str], None]
    ) -> Finished:
        """Stand for `processes.run` where ranks of this machine are started."""
        python, option, module, *words = command
        assert (python, option, module) == (sys.executable, "-m", "torch.distributed.run")
        return self.script(__file__, *words, on_line=on_line)

    def _start(self, name: str, command: Sequence[str], output: int, **_: Any) -> StartedScript:
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return self._origin.start(command, ROOT, {**os.environ, **variables})


class Rank(subprocess.Popen[bytes]):
    """A copy of torchrun's process that goes on as the rank that it starts."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], **_: Any) -> None:
        self.args, self.returncode = args, None
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            be_rank(args, env)


def be_rank(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as the module that a command of Python runs."""
    os.setsid()
    os.closerange(3, 4096)
    os.environ.clear()
    os.environ.update(environment)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = [*command[command.index("-m") + 1 :]]
    status = 0
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        status = status_of(exc)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    starts_ranks: Any = subprocess_handler
    starts_ranks.Popen = Rank
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
