"""ASGI middleware of a Bento: what clients may ask goes to the engine, everything else is refused.

A Bento may be served without our gateway, so it is as strict as that is.
"""

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from weighbridge.serving.client_requests import (
    BODY_SECONDS,
    BODY_TOO_LARGE,
    BODY_TOO_SLOW,
    UNKNOWN_OPERATION,
    openai_error,
    with_defaults,
)
from weighbridge.serving.passthrough import NoAnswer, Upstream

logger = logging.getLogger("bentoml.service.weighbridge")

BENTOML_OPERATIONS: Final = frozenset({"GET /livez", "GET /readyz", "GET /healthz", "GET /metrics"})
"""What BentoML answers itself; any other path its own proxy would pass to the engine."""
NOT_PASSED_ON: Final = frozenset(
    {b"host", b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"upgrade"}
)
"""Headers about one connection alone, not about the request or its answer."""
NOT_ASKED: Final = NOT_PASSED_ON | {b"content-length"}
"""Of a request, whose body is whole here and may have another length now."""
CROSS_ORIGIN: Final = b"access-control-"
"""How headers begin by which an engine would let in pages of any origin."""
UNAVAILABLE: Final = openai_error("The engine does not answer.", "server_error", "unavailable")


class _Refused(Exception):
    """The request is not passed on."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class EnginePassthrough:
    """Passes requests to the engine with less than half the work of BentoML's proxy.

    Args:
        app: BentoML's own.
        engine_url: where the engine listens.
        operations: what clients may ask of it, each a method and a path.
        max_body_bytes: largest body of a request.
        sampling: what requests get that name none; empty for an engine that knows it.
        body_seconds: longest time that it may take to come.
    """

    def __init__(
        self,
        app: Any,
        engine_url: str,
        operations: Collection[str],
        max_body_bytes: int,
        sampling: Mapping[str, float] = MappingProxyType({}),
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._app = app
        self._engine = Upstream(engine_url, decompress=False)
        self._operations = operations
        self._max_body_bytes = max_body_bytes
        self._sampling = sampling
        self._body_seconds = body_seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        # The path is decoded by now, and goes to the engine as it is.
        operation = f"{scope.get('method')} {scope.get('path')}"
        if scope["type"] == "lifespan" or operation in BENTOML_OPERATIONS:
            await self._app(scope, receive, send)
            return
        # A websocket cannot be answered: it is closed, which refuses it.
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        try:
            if operation not in self._operations:
                raise _Refused(404, UNKNOWN_OPERATION)
            body = await self._body(scope, receive)
        except _Refused as refused:
            await _send_json(send, refused.status, refused.body)
            return
        if body is not None:
            body = with_defaults(operation, body, self._sampling)
            await self._until_answered_or_left(scope, receive, send, body)

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """Return a request's whole body; None where the client hung up before it was whole.

        Raises:
            _Refused: it is too large, or does not come in time.
        """
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if int(announced) > self._max_body_bytes:
            raise _Refused(413, BODY_TOO_LARGE)
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise _Refused(413, BODY_TOO_LARGE)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as exc:
            raise _Refused(408, BODY_TOO_SLOW) from exc

    async def _until_answered_or_left(
        self, scope: Any, receive: Any, send: Any, body: bytes
    ) -> None:
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
            if name not in NOT_ASKED
        ]
        try:
            async with self._engine.request(scope["method"], path, headers, body) as response:
                answer_headers = [(name.lower(), value) for name, value in response.raw_headers]
                passed_back = [
                    (name, value)
                    for name, value in answer_headers
                    if name not in NOT_PASSED_ON and not name.startswith(CROSS_ORIGIN)
                ]
                await _send_start(send, response.status, passed_back)
                async for chunk in response.content.iter_any():
                    await _send_body(send, chunk, more=True)
                await _send_body(send, b"", more=False)
        except NoAnswer as exc:
            logger.warning("the engine did not answer %s: %s", scope["path"], exc)
            await _send_json(send, 503, UNAVAILABLE)


async def _send_json(send: Any, status: int, body: Mapping[str, Any]) -> None:
    await _send_start(send, status, [(b"content-type", b"application/json")])
    await _send_body(send, json.dumps(body).encode(), more=False)


async def _send_start(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send_body(send: Any, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
