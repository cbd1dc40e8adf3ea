"""Run a Bento: the environment from its own lock, the command, the wait for a real answer."""

import itertools
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weighbridge.core.environments import Environment, ensure
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process, free_port
from weighbridge.core.settings import Settings
from weighbridge.serving.bento_candidate import BentoCandidate
from weighbridge.serving.client_requests import MAX_BODY_BYTES
from weighbridge.serving.openai_client import is_ready

BENTOML_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+ \[|Traceback |Exception in ")
"""How a line of BentoML's own begins, among those of the engine."""


def candidate_of(folder: Path) -> BentoCandidate:
    """Return what the Bento in `folder` serves.

    Raises:
        Unavailable: it is not one of ours.
    """
    try:
        return BentoCandidate.model_validate_json((folder / "src" / "candidate.json").read_bytes())
    except (OSError, ValueError) as exc:
        wrong = "it has no readable candidate.json"
        raise Unavailable(f"opening the Bento in {folder}", wrong, "package it again") from exc


def environment_of(folder: Path, cache: Path) -> Environment:
    """Return the environment a Bento runs in, made from its own lock if it is not there."""
    return ensure(folder / "src" / candidate_of(folder).lock, cache)


def variables(
    host: str, port: int, name: str = "", max_body_bytes: int = MAX_BODY_BYTES
) -> dict[str, str]:
    """Return the environment variables under which a Bento's engine listens at this address.

    Args:
        host: to listen at.
        port: to listen at.
        name: by which clients call the model; empty: the engine's own.
        max_body_bytes: largest body of a request at BentoML's port.
    """
    return {
        "WEIGHBRIDGE_MAX_BODY_BYTES": str(max_body_bytes),
        **({"WEIGHBRIDGE_MODEL_NAME": name} if name else {}),
        "WEIGHBRIDGE_ENGINE_HOST": host,
        "WEIGHBRIDGE_ENGINE_PORT": str(port),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def serve_command(folder: Path, environment: Environment, host: str, port: int) -> list[str]:
    """Return the command that serves the Bento in `folder`; `port` is BentoML's own, for
    management.
    """
    if Settings().fast_start:
        launcher = [sys.executable, "-P", "-m", "weighbridge.serving.bento_launcher"]
        return [*launcher, str(environment.python), str(folder), host, str(port)]
    address = ["--host", host, "--port", str(port)]
    return [str(environment.bin("bentoml")), "serve", str(folder), *address]


@dataclass(frozen=True)
class RunningBento:
    """A Bento that runs and has answered."""

    url: str
    """BentoML's port."""
    engine_url: str
    """The engine's own port."""
    process: Process
    seconds: float


@contextmanager
def serve(folder: Path, cache: Path, log: Path, timeout: float) -> Iterator[RunningBento]:
    """Run an exported Bento in its own environment until the block ends.

    Raises:
        Unavailable: it ended (its log's tail is in the message), or gave no real completion within
            `timeout` seconds.
    """
    environment = environment_of(folder, cache)
    port, engine_port = free_port(), free_port()
    command = serve_command(folder, environment, "127.0.0.1", port)
    url, engine_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{engine_port}"
    with (
        # An empty working directory: a folder there that is named like a package would shadow it.
        tempfile.TemporaryDirectory(prefix="weighbridge-") as scratch,
        Process(
            "the Bento",
            command,
            log=log,
            cwd=Path(scratch),
            env=variables("127.0.0.1", engine_port),
        ) as process,
    ):
        yield RunningBento(url, engine_url, process, _wait(process, (engine_url, url), timeout))


def last_words(log: str, lines: int = 10) -> str:
    """Return what the engine wrote last; where it was never started, what BentoML wrote last."""
    # BentoML's last line before the engine's first.
    _, started, output = log.rpartition("Running service with command: ")
    if not started:
        return "\n".join(log.strip().splitlines()[-lines:]) or "(nothing)"
    # Up to BentoML's next line, which tells of the engine's end and not of its cause.
    engine_lines = itertools.takewhile(
        lambda line: not BENTOML_LINE.match(line), output.splitlines()[1:]
    )
    return "\n".join(list(engine_lines)[-lines:]) or "(the engine said nothing)"


def _wait(process: Process, urls: Sequence[str], timeout: float) -> float:
    """Return the seconds until a real completion came from each of `urls`."""
    started = time.monotonic()
    while not all(is_ready(url) for url in urls):
        if process.alive() and time.monotonic() - started < timeout:
            time.sleep(0.1)
            continue
        wrong = (
            f"no completion came within {timeout:.0f} s"
            if process.alive()
            else "it ended before it answered"
        )
        tail = last_words(process.log.read_text(errors="replace"))
        raise Unavailable(
            "starting the Bento", f"{wrong}. Its log ends:\n{tail}\n", f"whole log: {process.log}"
        )
    return time.monotonic() - started
