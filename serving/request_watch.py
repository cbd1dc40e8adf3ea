"""ASGI middleware of a Bento in a pod: what is under way, what ended how, and whether it answers.

Without a gateway of ours in front nobody else knows. At BentoML's port it adds::

    GET /readyz          200 once the engine has given a real answer, lately or now
    GET /requests        JSON: how many are under way, those that ended (`?after=N`: since then),
                         and what all came to since it began to count
    POST /drain          from the pod itself: connections are closed as their answers end

Every answer says in `X-Weighbridge-Version` which revision gave it.
"""

import asyncio
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

KEPT: Final = 4096
"""Ended requests that are remembered."""
FRESH_SECONDS: Final = 10.0
"""For which an answer proves that the next one will come."""
BUSY_SECONDS: Final = 120.0
"""For which the same holds while requests are under way: a question of ours would only wait in
their queue, and a replica that is merely busy must not be taken out.
"""
CLIENTS: Final = "/v1/"
"""How the paths begin that clients ask and we count."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
_FIRST_ERROR: Final = 400
_CLIENT_LEFT: Final = 499
"""Status of a request whose client hung up before the answer began, as nginx writes it, too."""


class Gauge(Protocol):
    """Of prometheus_client, as far as it is used here."""

    def set(self, value: float) -> None:
        """Set it to a number."""


class RequestWatch:
    """Counts requests of clients on their way through.

    Args:
        app: what answers them.
        revision: name of what runs here.
        asks: asks the engine for one token and returns whether it came.
        gauge: makes the gauge of what is under way; called in the process that answers.
    """

    def __init__(
        self,
        app: Any,
        revision: str,
        asks: Callable[[], Awaitable[bool]],
        gauge: Callable[[], Gauge],
    ) -> None:
        self._app = app
        self._revision = revision.encode()
        self._asks = asks
        self._gauge = gauge()
        self._in_flight = 0
        self._ended: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._count = 0
        self._totals: Counter[str] = Counter()
        # Tells a reader that counting has begun anew.
        self._since = time.time()
        self._answered_at = float("-inf")
        self._asking = asyncio.Lock()
        self._draining = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        operation = f"{scope.get('method')} {scope.get('path')}"
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif operation == "GET /readyz":
            ready = await self._is_ready()
            await _reply(send, 200 if ready else 503, {"answers": ready})
        elif operation == "GET /requests":
            await _reply(send, 200, self._figures(scope))
        elif operation == "POST /drain" and (scope.get("client") or [""])[0] in _LOOPBACK:
            self._draining = True
            await _reply(send, 200, {"draining": True})
        else:
            await self._watched(scope, receive, send)

    async def _is_ready(self) -> bool:
        if self._has_answered():
            return True
        async with self._asking:
            # Whoever waited here gets what the one before found.
            if not self._has_answered() and await self._asks():
                self._note_answer()
        return self._has_answered()

    def _has_answered(self) -> bool:
        holds = BUSY_SECONDS if self._in_flight else FRESH_SECONDS
        return time.monotonic() - self._answered_at < holds

    def _figures(self, scope: Any) -> dict[str, Any]:
        query = parse_qs(scope.get("query_string", b"").decode())
        after = query.get("after", [""])[-1]
        seen = int(after) if after.isdecimal() else self._count
        return {
            "revision": self._revision.decode(),
            "since": self._since,
            "in_flight": self._in_flight,
            "draining": self._draining,
            "count": self._count,
            "totals": self._totals,
            "ended": [request for request in self._ended if request["number"] > seen],
        }

    async def _watched(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope["path"].startswith(CLIENTS):
            await self._app(scope, receive, self._marked(send))
            return
        request = _Request(scope, self._revision, self._note_answer)
        self._change(1)
        try:
            await self._app(scope, request.receiving(receive), request.sending(self._marked(send)))
        finally:
            self._change(-1)
            self._count += 1
            self._ended.append({"number": self._count, **(ended := request.record())})
            self._totals[f"responses_{ended['status'] // 100}xx"] += 1
            self._totals["seconds_total"] += ended["seconds"]
            self._totals["bytes_in"] += request.received

    def _note_answer(self) -> None:
        self._answered_at = time.monotonic()

    def _change(self, by: int) -> None:
        self._in_flight += by
        self._gauge.set(self._in_flight)

    def _marked(self, send: Any) -> Any:
        """Return a `send` that says who answers and, at the end, that nothing more will be."""

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                closing = [(b"connection", b"close")] if self._draining else []
                own = (b"x-weighbridge-version", self._revision)
                message = {**message, "headers": [*message.get("headers", ()), own, *closing]}
            await send(message)

        return marked


class _Request:
    """One request of a client, from its head to the end of its answer."""

    def __init__(self, scope: Any, revision: bytes, on_answer: Callable[[], None]) -> None:
        # A list of models comes from an engine that generates nothing any more, too.
        self._on_answer = on_answer if scope["method"] == "POST" else lambda: None
        self._began = time.monotonic()
        self._first_byte: float | None = None
        self._status = _CLIENT_LEFT
        self._stream = self._whole = self._left = False
        self._bytes = 0
        self.received = len(scope["path"]) + sum(map(len, itertools.chain(*scope["headers"])))
        """Bytes that came, head and body."""
        self._pinned = (b"x-weighbridge-version", revision) in scope["headers"]

    def receiving(self, receive: Any) -> Any:
        async def received() -> Any:
            message = await receive()
            self.received += len(message.get("body", b""))
            self._left = self._left or message["type"] == "http.disconnect"
            return message

        return received

    def sending(self, send: Any) -> Any:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._first_byte = time.monotonic() - self._began
                self._status = message["status"]
                kinds = [value for name, value in message["headers"] if name == b"content-type"]
                self._stream = any(kind.startswith(b"text/event-stream") for kind in kinds)
            elif message.get("body") and self._status < _FIRST_ERROR:
                self._bytes += len(message["body"])
                self._on_answer()
            await send(message)
            self._whole = message["type"] != "http.response.start" and not message.get("more_body")

        return sent

    def record(self) -> Mapping[str, Any]:
        """Return how it ended: the fields of the gateway's `FinishedRequest`."""
        return {
            "status": self._status,
            "seconds": time.monotonic() - self._began,
            "stream": self._stream,
            "truncated": not self._whole and not self._left,
            "aborted": not self._whole and self._left,
            "pinned": self._pinned,
            "at": time.time(),
            "first_byte": self._first_byte,
            "bytes": self._bytes,
        }


async def _reply(send: Any, status: int, body: Mapping[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
