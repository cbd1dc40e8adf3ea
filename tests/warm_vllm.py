"""vLLM's server on a processor, in a process that begins with its libraries imported.

To import vLLM is two thirds of what a start of it costs where models are tiny. All else is the
copy's own: guard, arguments, environment, folder, output, process group and end. What does not ask
for this starts the real one, as every Bento does, and the engine that the conformance suite has
end with its parent.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from tests.warm_services import ROOT, Started, connect, send_order
from weighbridge.core import processes
from weighbridge.serving.engines.vllm import FORKED

ORIGIN = """
import os, runpy, socket, sys
if os.fork():
    os._exit(0)
os.setsid()
listener, owner, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
sys.path.insert(0, root)
from tests import warm_origin, warm_process
sys.path.remove(root)
from multiprocessing import context
context.SpawnContext.Process = context.ForkProcess
import gc; gc.disable()
import vllm.entrypoints.launchers.api_server.entry
gc.freeze(); gc.enable()

def start(order, output):
    warm_origin.begin(order, output)
    os.execvp = serve
    sys.argv = order["command"][2:]  # python -I reaper.py ...
    runpy.run_path(sys.argv[0], run_name="__main__")

def serve(program, argv):
    sys.argv = ["-c", *argv[4:]]  # python -I -c code ...
    warm_process.run_to_end(lambda: exec(argv[3], {"__name__": "__main__"}))

warm_origin.start = start
warm_origin.Origin(socket.socket(fileno=listener), owner).serve()
"""


class WarmVllm:
    """Has what is guarded and runs code of vLLM's Python with `FORKED` before it begin so within
    the block: its servers, where one process serves alone on a processor.

    All workers of a test run have one origin, which the first of them begins that needs it, and
    which ends with the owner.
    """

    def __init__(self, folder: Path, owner: int) -> None:
        self._folder = folder
        self._owner = owner
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "WarmVllm":
        self._start_cold = processes._start
        self._patch.setattr(processes, "_start", self.start)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        output: IO[Any] | int,
        *,
        cwd: Path,
        env: Mapping[str, str] | None,
    ) -> Any:
        """Stand for what starts every `weighbridge.core.processes.Process`."""
        command = [str(word) for word in argv]
        if isinstance(output, int) or not any(word.startswith(FORKED) for word in command):
            return self._start_cold(name, argv, output, cwd=cwd, env=env)
        environment = {**os.environ, **(env or {})}
        begin = partial(self._begin_origin, command[0], environment)
        connection = connect(self._folder / "vllm.sock", begin)
        send_order(connection, command, output.fileno(), cwd, environment)
        return Started(connection)

    def _begin_origin(self, python: str, environment: Mapping[str, str], listener: int) -> None:
        words = [str(listener), str(self._owner), str(ROOT)]
        with (self._folder / "vllm.log").open("w") as log:
            subprocess.run(
                [python, "-I", "-c", ORIGIN, *words],
                env=environment,
                pass_fds=[listener],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
