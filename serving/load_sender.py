"""How the load generator sends one request and reads its stream."""

import asyncio
import json
import time
from collections.abc import Iterable
from typing import Any, Final

import aiohttp

from weighbridge.serving.load_streams import StreamedAnswer
from weighbridge.serving.openai_client import OK, Payload

HEADERS: Final = {"Content-Type": "application/json"}


class Sender:
    """Sends to one endpoint."""

    def __init__(self, url: str, model: str, timeout: float) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model = model
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    def session(self) -> aiohttp.ClientSession:
        """Return a session, to be used as a context manager within an event loop."""
        # Engines close a connection after a stream while they promise to keep it: never take one
        # again.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        return aiohttp.ClientSession(connector=connector, timeout=self._timeout)

    async def send(
        self, session: aiohttp.ClientSession, payload: Payload, answer: StreamedAnswer
    ) -> None:
        """Send one request and note what comes."""
        answer.sent = time.perf_counter()
        answer.close(await self._read(session, payload, answer))

    async def _read(
        self, session: aiohttp.ClientSession, payload: Payload, answer: StreamedAnswer
    ) -> str | None:
        """Return why it did not work, None where it did."""
        path, body = _compose(payload, self._model)
        try:
            async with session.post(self._url + path, data=body, headers=HEADERS) as response:
                if response.status != OK:
                    return f"HTTP {response.status}: {(await response.text())[:200]}"
                async for chunk in response.content.iter_any():
                    answer.see(chunk)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return str(exc) or type(exc).__name__
        return None


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End tasks; whatever but their cancellation made one fail is raised."""
    given = list(tasks)
    for task in given:
        task.cancel()
    # The CancelledError of a task that was cut off is no Exception, and is passed over.
    for outcome in await asyncio.gather(*given, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


def _compose(payload: Payload, model: str) -> tuple[str, bytes]:
    path = "/v1/chat/completions" if "messages" in payload else "/v1/completions"
    options = {
        "model": model,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return path, json.dumps({**options, **payload}).encode()
