"""The routes of OpenAI's API over a `Generator`. Runs inside an engine's environment, on aiohttp."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from weighbridge.serving.shim.detokenizer import Piece, pieces
from weighbridge.serving.shim.protocol import Generator
from weighbridge.serving.shim.requests import (
    CompletionRequest,
    InvalidRequest,
    read_json,
    read_order,
    read_text,
    read_tokens,
)
from weighbridge.serving.shim.responses import CompletionReply

LARGEST_BODY: Final = 64 << 20
DRAIN_SECONDS: Final = 8.0
"""How long answers under way may take after SIGTERM: less than it takes until SIGKILL follows."""

log = logging.getLogger("weighbridge.shim")


@dataclass
class ServerCounters:
    """What /metrics tells."""

    counters: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("requests", "failures", "prompt_tokens", "completion_tokens"), 0
        )
    )
    waiting: int = 0
    running: int = 0

    def prometheus(self) -> str:
        """In Prometheus' text format."""
        lines = []
        for name, value in self.counters.items():
            lines += [
                f"# TYPE weighbridge_shim_{name}_total counter",
                f"weighbridge_shim_{name}_total {value}",
            ]
        for name, value in (("waiting", self.waiting), ("running", self.running)):
            lines += [
                f"# TYPE weighbridge_shim_requests_{name} gauge",
                f"weighbridge_shim_requests_{name} {value}",
            ]
        return "\n".join(lines) + "\n"


class Shim:
    """One model behind the API."""

    def __init__(self, generator: Generator, name: str) -> None:
        self.generator = generator
        self.name = name
        self.figures = ServerCounters()
        self._pool = ThreadPoolExecutor(generator.slots, thread_name_prefix="generate")

    def app(self) -> web.Application:
        """All routes."""
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=[_errors_as_json])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completion)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/logprobs", self._logprobs)
        app.on_cleanup.append(self._close)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.figures.prometheus())

    async def _models(self, request: web.Request) -> web.Response:
        model = {
            "id": self.name,
            "object": "model",
            "owned_by": "weighbridge",
            "max_model_len": self.generator.context,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        """Ids of `prompt`, with nothing added unless `add_special_tokens`; or of the chat in
        `messages`.
        """
        body = read_json(await request.read())
        if "messages" in body:
            return web.json_response(
                {"tokens": read_order(body, chat=True, generator=self.generator).prompt}
            )
        text = body.get("prompt")
        if not isinstance(text, str):
            raise InvalidRequest("`prompt` must be a text")
        tokens = self.generator.tokenize(
            read_text(text), special=bool(body.get("add_special_tokens"))
        )
        return web.json_response({"tokens": tokens})

    async def _logprobs(self, request: web.Request) -> web.Response:
        """Log-probabilities of the token ids in `completion` after those in `prompt`."""
        body = read_json(await request.read())
        prompt, completion = read_tokens(body, "prompt"), read_tokens(body, "completion")
        if not prompt or len(prompt) + len(completion) > self.generator.context:
            raise InvalidRequest(
                f"prompt and completion must have from 1 to {self.generator.context} tokens together"
            )
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                self._pool, self.generator.logprobs, prompt, completion
            )
        except NotImplementedError as exc:
            raise InvalidRequest("this model cannot tell log-probabilities", 501) from exc
        return web.json_response({"logprobs": found})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        self.figures.counters["requests"] += 1
        order = read_order(read_json(await request.read()), chat=chat, generator=self.generator)
        reply = CompletionReply(
            order, self.generator, self.name, uuid.uuid4().hex, int(time.time())
        )
        self.figures.counters["prompt_tokens"] += len(order.prompt)
        try:
            if order.stream:
                return await self._stream(request, order, reply)
            async with aclosing(self._pieces(order)) as made:
                async for piece in made:
                    reply.add(piece)
            return web.json_response(reply.whole())
        finally:
            self.figures.counters["completion_tokens"] += reply.completion_tokens

    async def _stream(
        self, request: web.Request, order: CompletionRequest, reply: CompletionReply
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(request)
        try:
            for event in reply.opening():
                await response.write(event)
            async with aclosing(self._pieces(order)) as made:
                async for piece in made:
                    for event in reply.events(piece):
                        await response.write(event)
            await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            log.info("a client left in the middle of an answer")
            return response
        except Exception as exc:  # the status is sent: within the stream is the only place to tell
            log.exception("an answer failed")
            self.figures.counters["failures"] += 1
            await response.write(f"data: {json.dumps(error(str(exc), 500))}\n\n".encode())
        await response.write_eof()
        return response

    async def _pieces(self, order: CompletionRequest) -> AsyncGenerator[Piece, None]:
        """The answer, made by a thread of the pool; whoever stops listening ends it at its next
        token.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        gone = threading.Event()

        def tell(item: Piece | Exception) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody listens
                loop.call_soon_threadsafe(queue.put_nowait, item)

        self.figures.waiting += 1
        future = self._pool.submit(self._work, order, tell, gone, loop)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            gone.set()
            if future.cancel():
                self.figures.waiting -= 1

    def _work(
        self,
        order: CompletionRequest,
        tell: Callable[[Piece | Exception], None],
        gone: threading.Event,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._count, -1, 1)
        try:
            with closing(pieces(self.generator, order)) as made:
                for piece in made:
                    if gone.is_set():
                        return
                    tell(piece)
        except Exception as exc:  # whatever the library raises is the client's to know
            tell(exc)
        finally:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._count, 0, -1)

    def _count(self, waiting: int, running: int) -> None:
        self.figures.waiting += waiting
        self.figures.running += running

    async def _close(self, app: web.Application) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Whatever goes wrong is told in OpenAI's form, and ends no more than its own request."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except InvalidRequest as exc:
        return web.json_response(error(str(exc), exc.status), status=exc.status)
    except web.HTTPException as exc:
        return web.json_response(error(exc.reason, exc.status), status=exc.status)
    except Exception as exc:
        log.exception("a request failed")
        return web.json_response(error(f"{type(exc).__name__}: {exc}", 500), status=500)


def error(words: str, status: int) -> dict[str, Any]:
    """The body that tells of an error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": words, "type": kind, "param": None, "code": status}}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that every script that serves has."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="model")


def serve(
    load: Callable[[], Generator], host: str, port: int, name: str, drain: float = DRAIN_SECONDS
) -> None:
    """Load the model, listen until SIGTERM or SIGINT, then finish the answers under way for at most
    `drain` seconds.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    shim = Shim(load(), name)
    asyncio.run(listen(shim.app(), host, port, drain))


async def listen(app: web.Application, host: str, port: int, drain: float) -> None:
    """Until SIGTERM or SIGINT; then take nothing new, and give what is under way `drain` seconds."""
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    # A client that hangs up cancels its handler, streamed or not.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=drain, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=1024).start()
    log.info("listening on http://%s:%d", host, port)
    await end.wait()
    log.info("ending: nothing new is taken, and what is under way finished")
    await runner.cleanup()
