"""The service inside a Bento: BentoML starts and watches the engine, the engine answers.

BentoML imports this from the Bento's folder, beside `candidate.json`: which engine, with which
options, over which model. The engine listens on a port of its own; `WEIGHBRIDGE_ENGINE_HOST` and
`WEIGHBRIDGE_ENGINE_PORT` set it, so that a deployment can send its traffic straight to the engine.
On BentoML's port is what clients may ask, which `EnginePassthrough` passes on, beside BentoML's own
`/livez`, `/readyz` and `/metrics`. A body may have as many bytes as `WEIGHBRIDGE_MAX_BODY_BYTES`
says, or else a mebibyte. In a pod `WEIGHBRIDGE_REVISION` names what runs here, and `RequestWatch`
then tells what is under way. The model goes by the name in `WEIGHBRIDGE_MODEL_NAME`, or else by the
engine's own, unless the recipe gives it one.
"""

import asyncio
import atexit
import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
from asyncio.subprocess import Process
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import bentoml

SOURCES = Path(__file__).resolve().parents[2]
"""The `src` of the Bento."""
INSTALL = (
    f"python -m venv ENV && ENV/bin/pip install -r {SOURCES / 'requirements.txt'}, "
    "then: ENV/bin/bentoml serve"
)
"""How to make an environment in which every Bento runs, wherever it was taken."""

try:
    import aiohttp
    import psutil

    from weighbridge.core.environments import ensure
    from weighbridge.core.errors import WeighbridgeError
    from weighbridge.core.parent_death import die_with_parent
    from weighbridge.core.processes import free_port
    from weighbridge.core.settings import Settings
    from weighbridge.serving.bento_candidate import BentoCandidate
    from weighbridge.serving.bento_middleware import EnginePassthrough
    from weighbridge.serving.client_requests import MAX_BODY_BYTES
    from weighbridge.serving.engines.base import engine_class
    from weighbridge.serving.openai_client import is_ready
    from weighbridge.serving.passthrough import open_session
    from weighbridge.serving.request_watch import RequestWatch
except ModuleNotFoundError as exc:
    # Whoever types `bentoml serve` has BentoML, and perhaps nothing else of what it needs.
    raise SystemExit(f"this Python has no {exc.name}, which the Bento needs: {INSTALL}") from exc

logger = logging.getLogger("bentoml.service.weighbridge")

CANDIDATE = BentoCandidate.model_validate(json.loads((SOURCES / "candidate.json").read_text()))
_PLUGIN = engine_class(CANDIDATE.engine["kind"])
_WEIGHED = _PLUGIN(_PLUGIN.Args.model_validate(CANDIDATE.engine))
_NAME = os.environ.get("WEIGHBRIDGE_MODEL_NAME")
ENGINE = _PLUGIN(_WEIGHED.called(_NAME)) if _NAME else _WEIGHED
HOST = os.environ.get("WEIGHBRIDGE_ENGINE_HOST", "127.0.0.1")
PORT = int(os.environ.get("WEIGHBRIDGE_ENGINE_PORT") or free_port())
REVISION = os.environ.get("WEIGHBRIDGE_REVISION", "")
PROBE_SECONDS = 9.0
"""Less than the time after which Kubernetes gives a probe up."""
MAX_BODY = int(os.environ.get("WEIGHBRIDGE_MAX_BODY_BYTES") or MAX_BODY_BYTES)
# Clients may ask for the engine's health at its own path, too.
OPERATIONS = ENGINE.operations | {f"GET {ENGINE.health}"}


def _end_what_may_have_ended(process: Process, terminate: Callable[[Process], None]) -> None:
    with contextlib.suppress(ProcessLookupError):
        terminate(process)


# BentoML's watcher sends SIGTERM to the engine and to the proxy in front of it at once; the proxy
# then ends an engine that has ended, which raises, and calls its own shutdown failed.
Process.terminate = functools.partialmethod(  # type: ignore[assignment]
    _end_what_may_have_ended, Process.terminate
)


def _engines_python() -> Path:
    """Return a Python that has the engine: this one, else that of the Bento's own lock, which is
    made where it is not there yet.
    """
    if not _PLUGIN.packages or any(map(_is_installed, _PLUGIN.packages)):
        return Path(sys.executable)
    try:
        return ensure(SOURCES / CANDIDATE.lock, Settings().cache).python
    except (WeighbridgeError, OSError) as exc:
        reason = f"this Python has no {_PLUGIN.packages[0]}, and no environment can be made ({exc})"
        raise SystemExit(f"{reason}: {INSTALL}") from exc


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


# Now, and not once BentoML has started workers: it would start them again and again.
PYTHON = _engines_python()


def _engine_url() -> str:
    # An address to listen at everywhere is none to connect to.
    host = {"::": "[::1]", "0.0.0.0": "127.0.0.1"}.get(HOST, HOST)
    return f"http://{host}:{PORT}"


def _engine_pid() -> int | None:
    """Return the engine's process id, None before it is there.

    It is told by its port: libraries start short-lived children of their own.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(str(PORT) in word for word in child.cmdline()):
                return int(child.pid)
    return None


def _end_with_engine() -> None:
    """End the whole service when its engine has ended, so that whoever supervises it can tell and
    restart it.

    BentoML itself would answer 503 from then on.
    """
    stop = threading.Event()
    while not (pid := _engine_pid()):
        stop.wait(0.05)
    with contextlib.suppress(ChildProcessError):  # BentoML, which waits for it too, was first
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    logger.info("the engine has ended: the service ends too")
    os.kill(os.getppid(), signal.SIGTERM)


@bentoml.service(
    name=CANDIDATE.name,
    workers=1,
    http={"proxy_port": PORT},
    endpoints={"livez": ENGINE.health},
    # A day: by BentoML's own limit of a minute long answers would be cut off.
    traffic={"timeout": 86400, "max_concurrency": 4096},
    tracing={"excluded_urls": "v1/.*"},
    logging={"access": {"enabled": False}},
)
class Weighbridge:
    """An OpenAI-compatible endpoint over one weighed candidate."""

    model = bentoml.models.BentoModel(CANDIDATE.model)

    @functools.cached_property
    def client(self) -> aiohttp.ClientSession:
        """What BentoML asks the engine for its health with."""
        return open_session(_engine_url(), decompress=False)

    def __command__(self) -> list[str]:
        die_with_parent(os.getppid())
        # BentoML gives up a worker whose engine dies while it loads, and starts another, for ever.
        atexit.register(os.kill, os.getppid(), signal.SIGTERM)
        # BentoML takes a command and no variables: the engine gets those of this process.
        os.environ.update(ENGINE.env())
        threading.Thread(target=_end_with_engine, daemon=True).start()
        command = ENGINE.command(Path(self.model.path), HOST, PORT, PYTHON)
        reaper = str(Path(__file__).with_name("reaper.py"))
        return [
            sys.executable,
            "-I",
            reaper,
            "--parent",
            str(os.getpid()),
            "--await-port",
            HOST,
            str(PORT),
            "--",
            *map(str, command),
        ]


async def _engine_answers() -> bool:
    return await asyncio.to_thread(is_ready, _engine_url(), PROBE_SECONDS)


def _in_flight_gauge() -> Any:
    # Not before: BentoML names the folder in which processes share their figures only now.
    from prometheus_client import Gauge

    says = "Requests of clients that are being answered, or wait for it."
    return Gauge("weighbridge_requests_in_flight", says, multiprocess_mode="livesum")


# The first is the outermost: it sees what the next one refuses, too.
if REVISION:
    Weighbridge.add_asgi_middleware(  # type: ignore[attr-defined]  # as below
        RequestWatch, revision=REVISION, asks=_engine_answers, gauge=_in_flight_gauge
    )
Weighbridge.add_asgi_middleware(  # type: ignore[attr-defined]  # the decorator made it a Service
    EnginePassthrough,
    engine_url=_engine_url(),
    operations=OPERATIONS,
    max_body_bytes=MAX_BODY,
    sampling={} if ENGINE.keeps_sampling else ENGINE.args.sampling(),
)
