"""The routes of OpenAI's API over a `Generator`, on aiohttp, inside an engine's environment."""

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
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing, suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from aiohttp import web

from weighbridge.serving.shim.detokenizer import Delta, deltas
from weighbridge.serving.shim.protocol import Generator
from weighbridge.serving.shim.requests import (
    CompletionRequest,
    InvalidRequest,
    read_completion_request,
    read_json,
    read_text,
    read_tokens,
)
from weighbridge.serving.shim.responses import CompletionResponse

LARGEST_BODY: Final = 64 << 20
"""Bytes: a long chat exceeds aiohttp's own limit of 1 MiB."""
DRAIN_SECONDS: Final = 8.0
"""How long answers under way may take after SIGTERM: less than it takes until SIGKILL follows."""

logger = logging.getLogger(__name__)


@dataclass
class ServerCounters:
    """What /metrics tells."""

    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("requests", "failures", "prompt_tokens", "completion_tokens"), 0
        )
    )
    waiting: int = 0
    running: int = 0

    def prometheus(self) -> str:
        """Return the counters in Prometheus' text format."""
        lines = []
        for name, value in self.totals.items():
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


class ShimServer:
    """One model behind the API."""

    def __init__(
        self, generator: Generator, name: str, sampling: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        self.generator = generator
        self._sampling = sampling
        self.name = name
        self.counters = ServerCounters()
        # A thread per answer that the model can make at a time: other requests wait in its queue.
        self._pool = ThreadPoolExecutor(generator.slots, thread_name_prefix="generate")

    def app(self) -> web.Application:
        """Return the application with all routes."""
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
        return web.Response(text=self.counters.prometheus())

    async def _models(self, request: web.Request) -> web.Response:
        model = {
            "id": self.name,
            "object": "model",
            "owned_by": "weighbridge",
            "max_model_len": self.generator.context,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        """Return the ids of `prompt`, with nothing added unless `add_special_tokens`; or of the
        chat in `messages`.
        """
        body = read_json(await request.read())
        if "messages" in body:
            return web.json_response(
                {
                    "tokens": read_completion_request(
                        body, chat=True, generator=self.generator
                    ).prompt
                }
            )
        text = body.get("prompt")
        if not isinstance(text, str):
            raise InvalidRequest("`prompt` must be a text")
        tokens = self.generator.tokenize(
            read_text(text), special=bool(body.get("add_special_tokens"))
        )
        return web.json_response({"tokens": tokens})

    async def _logprobs(self, request: web.Request) -> web.Response:
        """Return the log-probabilities of the token ids in `completion` after those in `prompt`."""
        body = read_json(await request.read())
        prompt, completion = read_tokens(body, "prompt"), read_tokens(body, "completion")
        if not prompt or len(prompt) + len(completion) > self.generator.context:
            most = self.generator.context
            raise InvalidRequest(
                f"prompt and completion must have from 1 to {most} tokens together"
            )
        loop = asyncio.get_running_loop()
        try:
            logprobs = await loop.run_in_executor(
                self._pool, self.generator.logprobs, prompt, completion
            )
        except NotImplementedError as exc:
            raise InvalidRequest("this model cannot tell log-probabilities", 501) from exc
        return web.json_response({"logprobs": logprobs})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _answer(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        self.counters.totals["requests"] += 1
        body = read_json(await http.read())
        # null is as good as nothing.
        told = {name: value for name, value in body.items() if value is not None}
        body = {**body, **self._sampling, **told}
        request = read_completion_request(body, chat=chat, generator=self.generator)
        answer = CompletionResponse(
            request, self.generator, self.name, uuid.uuid4().hex, int(time.time())
        )
        self.counters.totals["prompt_tokens"] += len(request.prompt)
        try:
            if request.stream:
                return await self._stream(http, answer)
            async with aclosing(self._deltas(request)) as generated:
                async for delta in generated:
                    answer.add(delta)
            return web.json_response(answer.whole())
        finally:
            self.counters.totals["completion_tokens"] += answer.completion_tokens

    async def _stream(self, http: web.Request, answer: CompletionResponse) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        await response.prepare(http)
        try:
            for event in answer.opening():
                await response.write(event)
            async with aclosing(self._deltas(answer.request)) as generated:
                async for delta in generated:
                    for event in answer.events(delta):
                        await response.write(event)
            await response.write(b"data: [DONE]\n\n")
        except ConnectionError:
            logger.info("a client left in the middle of an answer")
            return response
        except Exception as exc:  # the status is sent: within the stream is the only place to tell
            logger.exception("an answer failed")
            self.counters.totals["failures"] += 1
            await response.write(f"data: {json.dumps(error(str(exc), 500))}\n\n".encode())
        await response.write_eof()
        return response

    async def _deltas(self, request: CompletionRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer, made by a thread of the pool; whoever stops listening ends it at its
        next token.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        abandoned = threading.Event()

        def put(item: Delta | Exception) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody listens
                loop.call_soon_threadsafe(queue.put_nowait, item)

        self.counters.waiting += 1
        future = self._pool.submit(self._generate, request, put, abandoned, loop)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            abandoned.set()
            # Cancelled before its turn came: the thread that would have counted it never ran.
            if future.cancel():
                self.counters.waiting -= 1

    def _generate(
        self,
        request: CompletionRequest,
        put: Callable[[Delta | Exception], None],
        abandoned: threading.Event,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Make an answer, in a thread of the pool."""
        # Counted in the loop's thread, which alone changes the counters.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._count, -1, 1)
        try:
            with closing(deltas(self.generator, request)) as generated:
                for delta in generated:
                    if abandoned.is_set():
                        return
                    put(delta)
        except Exception as exc:  # whatever the library raises is the client's to know
            put(exc)
        finally:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._count, 0, -1)

    def _count(self, waiting: int, running: int) -> None:
        self.counters.waiting += waiting
        self.counters.running += running

    async def _close(self, app: web.Application) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    """Tell whatever goes wrong in OpenAI's form; it ends no more than its own request."""
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except InvalidRequest as exc:
        return web.json_response(error(str(exc), exc.status), status=exc.status)
    except web.HTTPException as exc:
        return web.json_response(error(exc.reason, exc.status), status=exc.status)
    except Exception as exc:
        logger.exception("a request failed")
        return web.json_response(error(f"{type(exc).__name__}: {exc}", 500), status=500)


def error(message: str, status: int) -> dict[str, Any]:
    """Return the body that tells of an error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every script that serves has."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="model")
    # Of requests that say nothing of them. By default as OpenAI's API has it.
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)


def sampling_of(options: argparse.Namespace) -> dict[str, float]:
    """Return what requests take that say nothing of it, of a script's options."""
    return {"temperature": options.temperature, "top_p": options.top_p}


def serve(
    load: Callable[[], Generator],
    host: str,
    port: int,
    name: str,
    drain: float = DRAIN_SECONDS,
    sampling: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Load the model, listen until SIGTERM or SIGINT, then finish the answers under way for at most
    `drain` seconds.

    Args:
        load: returns the model.
        host: to listen at.
        port: to listen at.
        name: of the model.
        drain: seconds.
        sampling: options of requests that say nothing of them.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    shim = ShimServer(load(), name, sampling)
    asyncio.run(listen(shim.app(), host, port, drain))


async def listen(app: web.Application, host: str, port: int, drain: float) -> None:
    """Serve until SIGTERM or SIGINT; then take nothing new, and give what is under way `drain`
    seconds.
    """
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    # A client that hangs up cancels its handler, streamed or not.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=drain, access_log=None)
    await runner.setup()
    # A backlog above the usual 128: clients arrive in bursts, and one that finds it full waits for
    # seconds.
    await web.TCPSite(runner, host, port, backlog=1024).start()
    logger.info("listening on http://%s:%d", host, port)
    await end.wait()
    logger.info("ending: nothing new is taken, and what is under way finished")
    await runner.cleanup()
