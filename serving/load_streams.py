"""Streamed answers as the load generator sees them: when each piece came, and whether the answer
was whole.

The generator shares the processor with the engine it measures, so it reads streams as bytes: a
search per piece instead of JSON.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from weighbridge.serving.load import Payload

PIECE: Final = re.compile(rb'"(?:content|text|reasoning_content)":\s*"(?!")')
FINISHED: Final = re.compile(rb'"finish_reason":\s*"')
FAILED: Final = re.compile(rb'(?:^|\n)(?:data: \{"error"|error: )')
USAGE: Final = re.compile(rb'"completion_tokens":\s*(\d+)')
DONE: Final = b"data: [DONE]"
CARRY: Final = 64
"""Bytes looked at again with the next piece, in case it was cut within a word searched for."""
OK: Final = 200
HEADERS: Final = {"Content-Type": "application/json"}


@dataclass(slots=True)
class StreamedAnswer:
    """What was seen of one request."""

    started: float
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    """When each piece of the answer came; of several at once, spread over the time since the one
    before.
    """
    tokens: int = 0
    """As the server counts them; where it doesn't, the pieces."""
    finished: bool = False
    done: bool = False
    error: str = ""
    carry: bytes = b""

    def see(self, piece: bytes) -> None:
        """Note what the bytes that just came say."""
        now = time.perf_counter()
        seen, text = len(self.carry), self.carry + piece
        # What ends within the carry was counted with the piece before.
        self._arrive(sum(1 for match in PIECE.finditer(text) if match.end() > seen), now)
        if not self.finished and FINISHED.search(text):
            self.finished = True
        if b'"usage"' in text and (usage := USAGE.search(text)):
            self.tokens = int(usage[1])
        if DONE in text:
            self.done = True
        elif not self.error and FAILED.search(text):
            self.error = text.decode(errors="replace")[:200]
        self.carry = text[-CARRY:]

    def _arrive(self, count: int, now: float) -> None:
        if count == 1:
            self.arrivals.append(now)
        elif count:
            before = self.arrivals[-1] if self.arrivals else now
            self.arrivals += [
                before + (now - before) * place / count for place in range(1, count + 1)
            ]

    def close(self, problem: str) -> None:
        """The connection is over: `problem` says what broke, if anything did."""
        self.ended = time.perf_counter()
        self.tokens = self.tokens or len(self.arrivals)
        self.error = self.error or problem
        if not self.error and not (self.finished and self.done):
            self.error = "the stream ended before the answer did"


class LoadRun:
    """Workers that take the next payload as soon as their last answer is there."""

    def __init__(
        self,
        url: str,
        payloads: Sequence[Payload],
        concurrency: int,
        enough: int,
        seconds: float,
        timeout: float,
        model: str,
    ) -> None:
        self.streams: list[StreamedAnswer] = []
        self.started = 0.0
        self.exhausted = 0.0
        """When the first worker found that nothing new is to be sent."""
        self._url = url.rstrip("/").removesuffix("/v1")
        self._payloads = iter(payloads)
        self._concurrency = concurrency
        self._enough = enough
        self._model = model
        self._seconds = seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    def go(self, max_seconds: float) -> None:
        """Send everything, or what fits into `max_seconds`; what is under way then is dropped."""
        asyncio.run(self._go(max_seconds))

    async def _go(self, max_seconds: float) -> None:
        # Engines close a connection after a stream while they promise to keep it: never take one
        # again.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=self._timeout) as session:
            self.started = time.perf_counter()
            workers = [asyncio.create_task(self._work(session)) for _ in range(self._concurrency)]
            _, late = await asyncio.wait(workers, timeout=max_seconds)
            self.exhausted = self.exhausted or time.perf_counter()
            for worker in late:
                worker.cancel()
            for outcome in await asyncio.gather(*workers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    async def _work(self, session: aiohttp.ClientSession) -> None:
        for payload in self._payloads:
            stream = StreamedAnswer(time.perf_counter())
            self.streams.append(stream)
            stream.close(await self._send(session, payload, stream))
            if self.exhausted or self._has_enough():
                break
        self.exhausted = self.exhausted or time.perf_counter()

    def _has_enough(self) -> bool:
        return (
            len(self.streams) >= self._enough
            and time.perf_counter() >= self.started + self._seconds
        )

    async def _send(
        self, session: aiohttp.ClientSession, payload: Payload, stream: StreamedAnswer
    ) -> str:
        """Why it did not work, if so."""
        path, body = _compose(payload, self._model)
        try:
            async with session.post(self._url + path, data=body, headers=HEADERS) as response:
                if response.status != OK:
                    return f"HTTP {response.status}: {(await response.text())[:200]}"
                async for piece in response.content.iter_any():
                    stream.see(piece)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return str(exc) or type(exc).__name__
        return ""


def _compose(payload: Payload, model: str) -> tuple[str, bytes]:
    path = "/v1/chat/completions" if "messages" in payload else "/v1/completions"
    options = {
        "model": model,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return path, json.dumps({**options, **payload}).encode()
