"""Start an engine in its locked environment, and stop it: one artifact, one process group, one free
port.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from weighbridge.core.environments import ensure
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process, free_port, is_taken, listens
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_for
from weighbridge.serving.openai_client import is_ready

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORTS_TRIED = 3
"""A port that was free may be taken before the engine listens there: then another is tried."""


@dataclass(frozen=True)
class Running:
    """An engine that has answered."""

    url: str
    """Base without `/v1`."""
    process: Process
    load_seconds: float
    """From process start to the first real token."""

    def has_died(self) -> bool:
        """Whether its process has ended: its connections break a moment before it does."""
        for _ in range(10):
            if not self.process.alive():
                return True
            time.sleep(0.1)
        return False


@contextmanager
def serve(model: Path, args: EngineArgs, cache: Path, log: Path) -> Iterator[Running]:
    """Serve the artifact in the folder `model` until the block ends.

    Args:
        model: Folder of the artifact.
        args: Arguments of the engine that serves it.
        cache: Folder that holds locked environments.
        log: File that takes all that the engine prints.

    Raises:
        Unavailable: The environment cannot be built, or the engine died or was not ready in time.
        BadInput: The engine's options cannot work here.
    """
    engine = engine_for(args)
    engine.check(model)
    python = ensure(engine.lock(), cache).python
    with ExitStack() as stack:
        # A folder of its own: one named like a Python package in the working directory would shadow
        # that package.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weighbridge-")))
        yield _start(stack, engine, model, python, log, folder)


def _start(
    stack: ExitStack, engine: Engine, model: Path, python: Path, output: Path, folder: Path
) -> Running:
    """Start on a free port; on another one where somebody took it before the engine did."""
    for attempt in range(1, PORTS_TRIED + 1):
        port = free_port(HOST)
        command = engine.command(model, HOST, port, python)
        process = Process(engine.name, command, log=output, cwd=folder, env=engine.env())
        try:
            seconds = _wait(process, port, engine.args.start_timeout)
        # BaseException: an engine must not stay behind after Ctrl-C either.
        except BaseException as exc:
            process.stop()
            if isinstance(exc, Unavailable) and is_taken(port, HOST) and attempt < PORTS_TRIED:
                logger.info("port %d was taken while %s started: trying another", port, engine.name)
                continue
            if isinstance(exc, Unavailable) and (
                why := engine.reason(output.read_text(errors="replace"))
            ):
                raise Unavailable(f"starting {engine.name}", why, f"whole log: {output}") from exc
            raise
        stack.callback(process.stop)
        return Running(f"http://{HOST}:{port}", process, seconds)
    raise AssertionError("the last attempt raises or returns")


def _wait(process: Process, port: int, timeout: float) -> float:
    """Return the seconds until the process itself answers: another one may have taken the port."""
    return process.wait_until(
        lambda: listens(process.pid, port) and is_ready(f"http://{HOST}:{port}"), timeout, poll=0.05
    )
