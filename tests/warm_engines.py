"""Servers of engines on a processor, in processes that begin with their libraries imported.

To import vLLM, or PyTorch and transformers, is two thirds of what a start of them costs where
models are tiny. All else is the copy's own: guard, command line, environment, folder, output,
process group and end. What does not ask for this starts the real one, as every Bento does, and the
engine that the conformance suite has end with its parent.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from tests.warm_services import (
    COMMAND_LINE_BYTES,
    ENVIRONMENT_BYTES,
    ROOT,
    Started,
    WarmStarts,
    begin_origin,
    connect,
    send_order,
)
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


class WarmEngines(WarmStarts):
    """Servers, with one origin for each kind."""

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
        kind = kind_of(command)
        if isinstance(output, int) or not kind:
            return self._start_cold(name, argv, output, cwd=cwd, env=env)
        environment = {**os.environ, **(env or {})}
        begin = partial(self._begin_origin, kind, command[0], environment)
        connection = connect(self.folder / f"{kind}.sock", begin)
        send_order(connection, command, output.fileno(), cwd, environment)
        return Started(connection)

    def _begin_origin(
        self, kind: str, python: str, environment: Mapping[str, str], listener: int
    ) -> None:
        words = [str(listener), str(self.owner), str(ROOT), ",".join(LIBRARIES[kind])]
        words.append("." * COMMAND_LINE_BYTES)
        log = self.folder / f"{kind}.log"
        variables = {**environment, "PADDING": "." * ENVIRONMENT_BYTES}
        begin_origin([python, "-I", "-c", ORIGIN, *words], log, variables, listener)
