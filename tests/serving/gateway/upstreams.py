"""Small real servers to stand behind the gateway, and clients that count every request that was not
answered whole.
"""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
from aiohttp import web

CHUNKS = 12
PAUSE = 0.1
LARGE = 64 << 20
"""Bytes: more than all buffers on the way hold."""
ACCEPTING_ROUNDS = 5
"""Of the event loop, in which what is accepted has its transport and protocol."""
ASK = "/v1/chat/completions"


class _Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Upstream:
    """An engine: `/health`, an echo, streams of a second, and one that breaks off."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.name = name
        self.healthy = True
        self.delay = 0.0
        self.seen: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.asked: list[str] = []
        """Methods and paths, those unknown to it among them."""
        self.left = 0
        """Large answers that the other side broke off."""
        self._background = _Background()
        self.port: int = self._background.run(self._start(port))

    async def _start(self, port: int) -> int:
        app = web.Application(client_max_size=8 << 20, middlewares=[self._record])
        app.router.add_get("/health", self._health)
        app.router.add_get("/well", self._health)
        app.router.add_post(ASK, self._answer)
        app.router.add_post("/stream", self._stream)
        app.router.add_post("/broken", self._broken)
        app.router.add_post("/large", self._large)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        await web.SockSite(self._runner, self._listener).start()
        return int(self._listener.getsockname()[1])

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.raw_path}")
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy and request.path == self.health else 503)

    health = "/health"
    operations = (f"POST {ASK}", "POST /stream", "POST /broken", "POST /large")

    async def _answer(self, request: web.Request) -> web.Response:
        self.seen.append(dict(request.headers))
        self.bodies.append(await request.read())
        await asyncio.sleep(self.delay)
        # As llama-server does: pages of any origin are let in.
        headers = {
            "Access-Control-Allow-Origin": request.headers.get("Origin", ""),
            "Access-Control-Allow-Credentials": "true",
        }
        return web.json_response({"by": self.name}, headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(CHUNKS):
            await response.write(f"data: {self.name} {number}\n\n".encode())
            await asyncio.sleep(PAUSE)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _large(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            for _ in range(LARGE >> 20):
                await response.write(bytes(1 << 20))
        except ConnectionError:
            self.left += 1
        return response

    async def _broken(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: half\n\n")
        await asyncio.sleep(0.1)
        assert request.transport
        request.transport.abort()
        return response

    def close(self) -> None:
        self._background.run(self._end())
        self._background.close()

    async def _end(self) -> None:
        # A connection that is accepted while its server closes would stay open, known to nobody.
        asyncio.get_running_loop().remove_reader(self._listener)
        for _ in range(ACCEPTING_ROUNDS):
            await asyncio.sleep(0)
        await self._runner.cleanup()


class Load:
    """Clients that ask one after the other until the end of the block."""

    def __init__(self, url: str, short: int = 6, streams: int = 4) -> None:
        self.answered: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._url, self._short, self._streams = url, short, streams
        self._stop = threading.Event()
        self._background = _Background()

    def __enter__(self) -> "Load":
        self._done = asyncio.run_coroutine_threadsafe(self._all(), self._background.loop)
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._done.result(60)
        self._background.close()

    async def _all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            short = [self._until_end(self._one, session) for _ in range(self._short)]
            await asyncio.gather(
                *short, *(self._until_end(self._stream, session) for _ in range(self._streams))
            )

    async def _until_end(
        self, ask: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, str]], session: Any
    ) -> None:
        while not self._stop.is_set():
            try:
                self.answered[await ask(session)] += 1
            except (aiohttp.ClientError, TimeoutError, AssertionError, ValueError) as exc:
                self.wrong.append(f"{type(exc).__name__}: {exc}")
            await asyncio.sleep(0.005)

    async def _one(self, session: aiohttp.ClientSession) -> str:
        async with session.post(f"{self._url}{ASK}", json={}) as answer:
            assert answer.status == 200, answer.status
            by = (await answer.json())["by"]
            assert answer.headers["X-Weighbridge-Version"] == by
            return str(by)

    async def _stream(self, session: aiohttp.ClientSession) -> str:
        async with session.post(f"{self._url}/stream", json={}) as answer:
            assert answer.status == 200, answer.status
            text = await answer.text()
            assert text.endswith("data: [DONE]\n\n"), f"cut after {text[-30:]!r}"
            return str(answer.headers["X-Weighbridge-Version"])


@contextlib.contextmanager
def upstreams(*names: str) -> Iterator[list[Upstream]]:
    """Several at once."""
    engines = [Upstream(name) for name in names]
    try:
        yield engines
    finally:
        for upstream in engines:
            upstream.close()
