"""Servers of engines on a processor, in processes that begin with their libraries imported.

To import vLLM, or PyTorch and transformers, is two thirds of what a start of them costs where
models are tiny. All else is the copy's own: guard, command line, environment, folder, output,
process group and end. What does not ask for this starts the real one, as every Bento does, and the
engine that the conformance suite has end with its parent.
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

LIBRARIES: Mapping[str, Sequence[str]] = {
    "vllm": ("vllm.entrypoints.launchers.api_server.entry",),
    "transformers_server.py": (
        "torch",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
        "aiohttp.web",
    ),
    "tvm_server.py": ("tvm.relax.frontend.nn.llm.kv_cache", "tokenizers", "aiohttp.web"),
}
"""What a server imports in any case: by its script's name, vLLM's by its own."""
COMMAND_LINE_BYTES, ENVIRONMENT_BYTES = 1 << 14, 1 << 16
"""Room for those of servers, in /proc."""
ORIGIN = """
import importlib, os, runpy, socket, sys
if os.fork():
    os._exit(0)
os.setsid()
listener, owner, root = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
libraries = sys.argv[4].split(",")
sys.path.insert(0, root)
from tests import warm_origin, warm_process
sys.path.remove(root)
from multiprocessing import context
context.SpawnContext.Process = context.ForkProcess
import gc; gc.disable()
for name in libraries:
    importlib.import_module(name)
gc.freeze(); gc.enable()

def start(order, output):
    warm_origin.begin(order, output)
    os.execvp = go_on
    go_on("", order["command"])

def go_on(program, command):  # the guard does, as the server
    warm_process.tell(command, os.environ)
    if command[2] == "-c":  # python -I -c code ...
        sys.argv = ["-c", *command[4:]]
        warm_process.run_to_end(lambda: exec(command[3], {"__name__": "__main__"}))
    sys.argv = command[2:]  # python -I script ...
    warm_process.run_to_end(lambda: runpy.run_path(command[2], run_name="__main__"))

warm_origin.start = start
warm_origin.Origin(socket.socket(fileno=listener), owner).serve()
"""


def kind_of(command: Sequence[str]) -> str:
    """What is started, as `LIBRARIES` names it: `vllm` is whatever its Python runs after `FORKED`,
    as it does servers of one process; empty: another command.
    """
    if any(word.startswith(FORKED) for word in command):
        return "vllm"
    name = Path(command[2]).name if command[1:2] == ["-I"] else ""
    return name if name in LIBRARIES else ""


class WarmEngines:
    """Has servers begin so within the block.

    All workers of a test run have one origin for each kind, which the first of them begins that
    needs it, and which ends with the owner.
    """

    def __init__(self, folder: Path, owner: int) -> None:
        self._folder = folder
        self._owner = owner
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "WarmEngines":
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
        kind = kind_of(command)
        if isinstance(output, int) or not kind:
            return self._start_cold(name, argv, output, cwd=cwd, env=env)
        environment = {**os.environ, **(env or {})}
        begin = partial(self._begin_origin, kind, command[0], environment)
        connection = connect(self._folder / f"{kind}.sock", begin)
        send_order(connection, command, output.fileno(), cwd, environment)
        return Started(connection)

    def _begin_origin(
        self, kind: str, python: str, environment: Mapping[str, str], listener: int
    ) -> None:
        words = [str(listener), str(self._owner), str(ROOT), ",".join(LIBRARIES[kind])]
        words.append("." * COMMAND_LINE_BYTES)
        with (self._folder / f"{kind}.log").open("w") as log:
            subprocess.run(
                [python, "-I", "-c", ORIGIN, *words],
                env={**environment, "PADDING": "." * ENVIRONMENT_BYTES},
                pass_fds=[listener],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
