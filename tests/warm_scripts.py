"""Our scripts for other environments, in processes that begin with their libraries imported.

To import BentoML, or PyTorch and what rests on it, is most of what such a script costs where models
are tiny. Here its process begins as a copy of one of the same Python that has imported them; all
else is its own: arguments, environment, folder, output, process group and end. It is so in all
modules but tests/tasks/optimizers/test_compressed_tensors.py, whose first model is made the real
way, and in the commands of tests/flows/warm_command.py. Commands that begin as a user's do run the
real scripts: those of tests/test_packaging.py, and the first one of tests/flows/test_release.py.
"""

import hashlib
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from tests.warm_services import ROOT, Started, WarmStarts, begin_origin, connect, send_order
from weighbridge.core.paths import PACKAGE
from weighbridge.core.settings import Settings

CACHE = Settings().cache
"""Where environments are that outlive a test."""
LIBRARIES: Mapping[str, Sequence[str]] = {
    "bento_build.py": (
        "bentoml._internal.bento.bento",
        "_bentoml_sdk",
        "aiohttp",
        "pydantic_settings",
    ),
    "convert.py": ("torch", "transformers.utils.import_utils"),
    "quantize.py": ("llmcompressor", "transformers.models.auto.modeling_auto", "datasets"),
    "build.py": ("torch", "transformers.models.auto.modeling_auto", "onnx_ir"),
}
"""What a script imports in any case, by its name."""
ORIGIN = """
import gc, importlib, os, runpy, socket, sys
if os.fork():
    os._exit(0)
os.setsid()
listener, owner, root, *libraries = sys.argv[1:]
sys.path.insert(0, root)
from tests import warm_origin, warm_process
sys.path.remove(root)
for name in libraries:
    importlib.import_module(name)
gc.freeze()  # else each copy looks through all of it when it ends

def start(order, output):
    warm_origin.begin(order, output)
    safe_path, *script = order["command"][1:]
    if safe_path == "-P":
        sys.argv = script
    else:
        sys.argv = [safe_path, *script]
        sys.path.insert(0, os.path.dirname(safe_path))
    warm_process.run_to_end(lambda: runpy.run_path(sys.argv[0], run_name="__main__"))

warm_origin.start = start
warm_origin.Origin(socket.socket(fileno=int(listener)), int(owner)).serve()
"""


class WarmScripts(WarmStarts):
    """Scripts, with one origin for each and its Python."""

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
        script = _script_in(command)
        if output != subprocess.PIPE or script is None:
            return self._start_cold(name, argv, output, cwd=cwd, env=env)
        environment = {**os.environ, **(env or {})}
        kind = hashlib.sha256(f"{command[0]} {script}".encode()).hexdigest()[:8]
        address = self.folder / f"{script.stem}-{kind}.sock"
        origin = ScriptOrigin(address, self.owner, LIBRARIES[script.name])
        return origin.start(command, cwd, environment)


class ScriptOrigin:
    """A process that copies of itself run scripts in; begun by the first one, in its environment.

    It ends with its owner.
    """

    def __init__(self, address: Path, owner: int, libraries: Sequence[str]) -> None:
        self._address = address
        self._owner = owner
        self._libraries = libraries

    def start(
        self, command: Sequence[str], folder: Path | None, environment: Mapping[str, str]
    ) -> "StartedScript":
        """Start a script; its command begins with the Python, which is the same each time."""
        reading, writing = os.pipe()
        try:
            connection = connect(self._address, partial(self._begin, command[0], environment))
            send_order(connection, command, writing, folder, environment)
        finally:
            os.close(writing)
        return StartedScript(connection, reading)

    def _begin(self, python: str, environment: Mapping[str, str], listener: int) -> None:
        named = ("PREFECT_", "MLFLOW_", "WEIGHBRIDGE_")
        neutral = {key: value for key, value in environment.items() if not key.startswith(named)}
        words = [str(listener), str(self._owner), str(ROOT), *self._libraries]
        command = [python, "-P", "-c", ORIGIN, *words]
        begin_origin(command, self._address.with_suffix(".log"), neutral, listener)


class StartedScript(Started):
    """As much of `subprocess.Popen` as is asked of it, with the output to read."""

    def __init__(self, connection: socket.socket, output: int) -> None:
        self.stdout = os.fdopen(output, encoding="utf-8", errors="replace")
        super().__init__(connection)

    def __enter__(self) -> "StartedScript":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.wait()


def _script_in(command: Sequence[str]) -> Path | None:
    """Return our script that a Python of the machine's environments is to run, if that is it."""
    words = [word for word in command[1:3] if word != "-P"]
    script = Path(words[0]) if words else Path()
    known = script.name in LIBRARIES and PACKAGE in script.parents and script.exists()
    return script if known and Path(command[0]).is_relative_to(CACHE) else None
