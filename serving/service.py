"""The service inside a Bento: BentoML starts and watches the engine, the engine answers.

BentoML imports this from the Bento's folder, beside `candidate.json`: which engine, with which
options, over which model. The engine listens on a port of its own; `WEIGHBRIDGE_ENGINE_HOST` and
`WEIGHBRIDGE_ENGINE_PORT` set it, so that a deployment can send its traffic straight to the engine.
On BentoML's port everything is there too: `/v1`, which `EnginePassthrough` passes on, beside
`/livez`, `/readyz` and `/metrics`.
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

from weighbridge.core.parent_death import die_with_parent
from weighbridge.core.processes import free_port
from weighbridge.serving.bento_candidate import BentoCandidate
from weighbridge.serving.engines.base import engine_class
from weighbridge.serving.passthrough import NoAnswer, Upstream, open_session

logger = logging.getLogger("bentoml.service.weighbridge")

SOURCES = Path(__file__).resolve().parents[2]
"""The `src` of the Bento."""
CANDIDATE = BentoCandidate.model_validate(json.loads((SOURCES / "candidate.json").read_text()))
_PLUGIN = engine_class(CANDIDATE.engine["kind"])
ENGINE = _PLUGIN(_PLUGIN.Args.model_validate(CANDIDATE.engine))
HOST = os.environ.get("WEIGHBRIDGE_ENGINE_HOST", "127.0.0.1")
PORT = int(os.environ.get("WEIGHBRIDGE_ENGINE_PORT") or free_port())

NOT_PASSED_ON = frozenset({b"host", b"connection", b"keep-alive", b"transfer-encoding", b"expect"})
"""Headers about one connection alone, not about the request or its answer."""
UNAVAILABLE = {
    "error": {"message": "the engine does not answer", "type": "unavailable_error", "code": 503}
}


def _engine_url() -> str:
    # An address to listen at everywhere is none to connect to.
    host = {"::": "[::1]", "0.0.0.0": "127.0.0.1"}.get(HOST, HOST)
    return f"http://{host}:{PORT}"


class EnginePassthrough:
    """ASGI middleware that passes `/v1` to the engine with less than half the work of BentoML's
    proxy.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._engine = Upstream(_engine_url(), decompress=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:
            return
        answer = asyncio.ensure_future(self._answer(scope, body, send))
        disconnect = asyncio.ensure_future(_disconnected(receive))
        # A client that hangs up must free its slot in the engine.
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        for task in (disconnect, answer):
            task.cancel()
        await asyncio.gather(answer, disconnect, return_exceptions=True)
        if not answer.cancelled() and (error := answer.exception()):
            raise error

    async def _answer(self, scope: Any, body: bytes, send: Any) -> None:
        query = scope["query_string"].decode()
        path = f"{scope['path']}?{query}" if query else scope["path"]
        headers = [
            (name.decode(), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in NOT_PASSED_ON
        ]
        try:
            async with self._engine.request(scope["method"], path, headers, body) as response:
                answer_headers = [(name.lower(), value) for name, value in response.raw_headers]
                passed_back = [
                    (name, value) for name, value in answer_headers if name not in NOT_PASSED_ON
                ]
                await _send_start(send, response.status, passed_back)
                async for chunk in response.content.iter_any():
                    await _send_body(send, chunk, more=True)
        except NoAnswer as exc:
            logger.warning("the engine did not answer %s: %s", scope["path"], exc)
            await _send_start(send, 503, [(b"content-type", b"application/json")])
            await _send_body(send, json.dumps(UNAVAILABLE).encode(), more=True)
        await _send_body(send, b"", more=False)


async def _send_start(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send_body(send: Any, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _body(receive: Any) -> bytes | None:
    """Return a request's whole body; None where the client hung up before it was whole."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
        """What BentoML's own proxy uses for every path outside `/v1`."""
        return open_session(_engine_url(), decompress=False)

    def __command__(self) -> list[str]:
        die_with_parent(os.getppid())
        # BentoML gives up a worker whose engine dies while it loads, and starts another, for ever.
        atexit.register(os.kill, os.getppid(), signal.SIGTERM)
        # BentoML takes a command and no variables: the engine gets those of this process.
        os.environ.update(ENGINE.env())
        threading.Thread(target=_end_with_engine, daemon=True).start()
        command = ENGINE.command(Path(self.model.path), HOST, PORT, Path(sys.executable))
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


Weighbridge.add_asgi_middleware(EnginePassthrough)  # type: ignore[attr-defined]  # the decorator made it a Service
