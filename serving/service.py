"""The service inside a Bento: BentoML starts and watches the engine, the engine answers.

BentoML imports this from the Bento's folder, beside `candidate.json`: which engine, with which
options, over which model. The engine listens on a port of its own; `WEIGHBRIDGE_ENGINE_HOST` and
`WEIGHBRIDGE_ENGINE_PORT` set it, so that a deployment can send its traffic straight to the engine.
On BentoML's port everything is there too: `/v1` is passed on by `PassOn`, beside `/livez`,
`/readyz`, `/metrics`.
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
from pathlib import Path
from typing import Any

import aiohttp
import bentoml
import psutil

from weighbridge.core.plugins import load
from weighbridge.core.processes import free_port
from weighbridge.serving.bento_candidate import BentoCandidate
from weighbridge.serving.reaper import die_with_parent

logger = logging.getLogger("bentoml.service.weighbridge")

SOURCES = Path(__file__).resolve().parents[2]
"""The `src` of the Bento."""
CANDIDATE = BentoCandidate.model_validate(json.loads((SOURCES / "candidate.json").read_text()))
ENGINE = load("engine", CANDIDATE.engine["kind"])
ARGS = ENGINE.Args.model_validate(CANDIDATE.engine)
HOST = os.environ.get("WEIGHBRIDGE_ENGINE_HOST", "127.0.0.1")
PORT = int(os.environ.get("WEIGHBRIDGE_ENGINE_PORT") or free_port())
HEALTH = getattr(ENGINE, "health", "/health")

_NOT_PASSED_ON = frozenset({b"host", b"connection", b"keep-alive", b"transfer-encoding", b"expect"})


def _session() -> aiohttp.ClientSession:
    """Connections to the engine; llama-server closes each after a stream while it advertises
    keep-alive.
    """
    return aiohttp.ClientSession(
        f"http://{'[::1]' if HOST == '::' else '127.0.0.1' if HOST == '0.0.0.0' else HOST}:{PORT}",
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        auto_decompress=False,
    )


class PassOn:
    """ASGI middleware that passes `/v1` to the engine with less than half the work of BentoML's
    proxy.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._client: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        body, gone = await _body(receive)
        if gone:
            return
        answer = asyncio.ensure_future(self._answer(scope, body, send))
        hung_up = asyncio.ensure_future(_disconnected(receive))
        # A client that hangs up must free its slot in the engine.
        await asyncio.wait({answer, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        for task in (hung_up, answer):
            task.cancel()
        await asyncio.gather(answer, hung_up, return_exceptions=True)
        if not answer.cancelled() and (error := answer.exception()):
            raise error

    async def _answer(self, scope: Any, body: bytes, send: Any) -> None:
        self._client = self._client or _session()
        target = scope["path"] + (
            "?" + scope["query_string"].decode() if scope["query_string"] else ""
        )
        headers = [
            (k.decode(), v.decode("latin-1"))
            for k, v in scope["headers"]
            if k not in _NOT_PASSED_ON
        ]
        started = False
        try:
            async with self._client.request(
                scope["method"], target, data=body or None, headers=headers
            ) as response:
                kept = [
                    (k.lower(), v)
                    for k, v in response.raw_headers
                    if k.lower() not in _NOT_PASSED_ON
                ]
                await send(
                    {"type": "http.response.start", "status": response.status, "headers": kept}
                )
                started = True
                async for chunk in response.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except aiohttp.ClientError as exc:
            if started:
                raise
            logger.warning("the engine did not answer %s: %s", scope["path"], exc)
            kept = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 503, "headers": kept})
            error = {
                "error": {
                    "message": "the engine does not answer",
                    "type": "unavailable_error",
                    "code": 503,
                }
            }
            await send(
                {
                    "type": "http.response.body",
                    "body": json.dumps(error).encode(),
                    "more_body": True,
                }
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Any) -> tuple[bytes, bool]:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"", True
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts), False


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _engine() -> int:
    """Process id of the engine; 0 before it is there. Libraries start short-lived children of their
    own.
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(str(PORT) in word for word in child.cmdline()):
                return int(child.pid)
    return 0


def _end_with_engine() -> None:
    """End the whole service when its engine has ended, so that whoever supervises it can tell and
    restart it.

    BentoML itself would answer 503 from then on.
    """
    stop = threading.Event()
    while not (engine := _engine()):
        stop.wait(0.05)
    with contextlib.suppress(ChildProcessError):  # BentoML, which waits for it too, was first
        os.waitid(os.P_PID, engine, os.WEXITED | os.WNOWAIT)
    logger.info("the engine has ended: the service ends too")
    os.kill(os.getppid(), signal.SIGTERM)


@bentoml.service(
    name=CANDIDATE.name,
    workers=1,
    http={"proxy_port": PORT},
    endpoints={"livez": HEALTH},
    traffic={"timeout": 86400, "max_concurrency": 4096},
    tracing={"excluded_urls": "v1/.*"},
    logging={"access": {"enabled": False}},
)
class Weighbridge:
    """An OpenAI-compatible endpoint over one weighed candidate."""

    model = bentoml.models.BentoModel(CANDIDATE.model)

    @functools.cached_property
    def client(self) -> aiohttp.ClientSession:
        """What BentoML's own proxy uses for every path outside `/v1`."""
        return _session()

    def __command__(self) -> list[str]:
        die_with_parent()
        # BentoML gives up a worker whose engine dies while it loads, and starts another, for ever.
        atexit.register(os.kill, os.getppid(), signal.SIGTERM)
        os.environ.update(ENGINE.env(ARGS))
        threading.Thread(target=_end_with_engine, daemon=True).start()
        command = ENGINE.command(Path(self.model.path), ARGS, HOST, PORT, Path(sys.executable))
        reaper = str(Path(__file__).with_name("reaper.py"))
        return [
            sys.executable,
            "-I",
            reaper,
            "--await-port",
            HOST,
            str(PORT),
            "--",
            *map(str, command),
        ]


Weighbridge.add_asgi_middleware(PassOn)  # type: ignore[attr-defined]  # the decorator made it a Service
