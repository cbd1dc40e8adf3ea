"""Our scripts for other environments, in processes that begin with their libraries imported.

To import BentoML, or PyTorch and what rests on it, is most of what such a script costs where models
are tiny. Here its process begins as a copy of one of the same Python that has imported them; all
else is its own: arguments, environment, folder, output, process group and end.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from weighbridge.core import processes
from weighbridge.core.processes import Finished

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
import gc, importlib, json, os, runpy, socket, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
gc.freeze()  # else each copy looks through all of it when it ends
orders = socket.socket(fileno=int(sys.argv[1]))
while True:
    text, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 1)
    if not text:
        break
    [output] = descriptors
    if (pid := os.fork()) == 0:
        orders.close()
        order = json.loads(text)
        os.setsid()
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.argv = order["script"]
        if not order["safe_path"]:
            sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    os.close(output)
    orders.sendall(b"%d\\n" % pid)
    orders.sendall(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class Origin:
    """A process that copies of itself run a script in, one at a time."""

    def __init__(self, python: str, libraries: Sequence[str], environment: dict[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [python, "-P", "-c", ORIGIN, str(number), *libraries],
                pass_fds=[number],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._orders, self._answers = ours, ours.makefile("r")

    def run(self, order: Mapping[str, object], on_line: Callable[[str], None]) -> Finished:
        reading, writing = os.pipe()
        socket.send_fds(self._orders, [json.dumps(order).encode()], [writing])
        os.close(writing)
        pid, lines = int(self._answers.readline()), []
        try:
            with os.fdopen(reading, encoding="utf-8", errors="replace") as output:
                for line in output:
                    lines.append(line)
                    on_line(line.rstrip("\n"))
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            raise
        finally:
            status = int(self._answers.readline())
        return Finished(status, "".join(lines))

    def close(self) -> None:
        self._answers.close()
        self._orders.close()
        self._process.kill()
        self._process.wait()


class WarmScripts:
    """Stands for `processes.run`; what is none of these scripts is run as usual."""

    def __init__(self) -> None:
        self._origins: dict[tuple[str, str], Origin] = {}
        self._alone = threading.Lock()

    def run(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] = lambda line: None,
    ) -> Finished:
        python, *words = map(str, argv)
        safe_path = words[:1] == ["-P"]
        script = words[safe_path:]
        libraries = LIBRARIES.get(Path(script[0]).name) if script else None
        if libraries is None or not Path(script[0]).exists():
            return processes.run(name, argv, env=env, cwd=cwd, on_line=on_line)
        environment = {**os.environ, **(env or {})}
        order = {
            "script": script,
            "environment": environment,
            "folder": str(cwd or Path.cwd()),
            "safe_path": safe_path,
        }
        with self._alone:
            key = python, script[0]
            if key not in self._origins:
                self._origins[key] = Origin(python, libraries, environment)
            return self._origins[key].run(order, on_line)

    def end(self) -> None:
        for origin in self._origins.values():
            origin.close()


@contextlib.contextmanager
def warm_scripts() -> Iterator[None]:
    """Have what is run within the block run so."""
    scripts = WarmScripts()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("serving.bento", "tasks.optimizers.scripts"):
            patch.setattr(f"weighbridge.{module}.run", scripts.run)
        try:
            yield
        finally:
            scripts.end()
