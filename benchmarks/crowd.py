"""Clients of an OpenAI endpoint that count every request that was not answered whole.

Each asks, pauses, and asks again until the end of the block: short questions, and long streams. A
stream is whole when it gave a reason for its end and `[DONE]`; whatever else ends it is a failure,
as is every status but 200.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from weighbridge.serving.event_stream import EventReader

MODEL = "model"
VERSION = "X-Weighbridge-Version"
END = 120.0
"""Seconds that the requests under way have to end after the block."""


@dataclass(frozen=True)
class Request:
    """What became of one; times are of the monotonic clock."""

    kind: str
    began: float
    ended: float
    version: str
    """That answered; empty where none did."""
    first: float = 0.0
    """Time of the first byte of the answer."""
    problem: str | None = None


@dataclass(frozen=True)
class Habits:
    """What the clients ask."""

    short: int = 24
    streams: int = 8
    short_tokens: int = 4
    stream_tokens: int = 400
    pause: float = 0.3
    """Seconds between an answer and the next question of the same client."""
    body: Mapping[str, Any] | None = None
    """Further fields of every request, such as `ignore_eos`."""


class Crowd:
    """As a context manager; look at `requests` whenever you like."""

    def __init__(self, url: str, habits: Habits | None = None, *, model: str = MODEL) -> None:
        self.requests: list[Request] = []
        self._url = f"{url.removesuffix('/').removesuffix('/v1')}/v1/chat/completions"
        self._habits = habits or Habits()
        self._model = model
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._all()), name="crowd", daemon=True
        )

    def __enter__(self) -> "Crowd":
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._over.set()
        self._thread.join(END)
        if self._thread.is_alive():
            self.requests.append(
                Request("end", 0, 0, "", problem=f"requests did not end within {END:.0f} s")
            )

    @property
    def problems(self) -> list[Request]:
        return [request for request in self.requests if request.problem]

    def since(self, moment: float) -> list[Request]:
        """Return the requests that began after `moment`, in the order of their end."""
        return [request for request in self.requests if request.began >= moment]

    def first_answer(self, version: str, since: float) -> float | None:
        """Return when the first request that began after `since` got its answer's first byte from
        this version.
        """
        firsts = (request.first for request in self.since(since) if request.version == version)
        return min((first for first in firsts if first), default=None)

    def summary(self) -> str:
        """Return one line about all requests."""
        problems = Counter(request.problem for request in self.problems)
        versions = Counter(request.version for request in self.requests)
        return (
            f"{len(self.requests)} requests, by version {dict(versions)}, "
            f"{len(self.problems)} failed {dict(problems)}"
        )

    async def _all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            habits = self._habits
            clients = [self._client(session, "short", number) for number in range(habits.short)]
            clients += [self._client(session, "stream", number) for number in range(habits.streams)]
            await asyncio.gather(*clients)

    async def _client(self, session: aiohttp.ClientSession, kind: str, number: int) -> None:
        await asyncio.sleep(
            self._habits.pause * number / max(self._habits.short, self._habits.streams)
        )
        while not self._over.is_set():
            self.requests.append(await self._ask(session, kind, number))
            await asyncio.sleep(self._habits.pause)

    async def _ask(self, session: aiohttp.ClientSession, kind: str, number: int) -> Request:
        habits, began, version, first = self._habits, time.monotonic(), "", 0.0
        streamed = kind == "stream"
        body = {
            "model": self._model,
            "stream": streamed,
            "temperature": 0,
            "messages": [{"role": "user", "content": f"{number}: how are you?"}],
            "max_tokens": habits.stream_tokens if streamed else habits.short_tokens,
            **(habits.body or {}),
        }
        try:
            async with session.post(self._url, json=body) as response:
                # `7.2` is version 7 again, started while its first process was still draining.
                version = response.headers.get(VERSION, "").partition(".")[0]
                first = time.monotonic()
                problem = await _problem_of(response, streamed=streamed)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as exc:
            problem = f"{type(exc).__name__}{' in its stream' if streamed and first else ''}"
        return Request(kind, began, time.monotonic(), version, first, problem)


async def _problem_of(response: aiohttp.ClientResponse, *, streamed: bool) -> str | None:
    """Return what is wrong with an answer; None of one that is whole."""
    if response.status != 200:
        return f"HTTP {response.status}"
    if streamed:
        return await _problem_of_stream(response)
    return None if (await response.json())["choices"] else "no answer in it"


async def _problem_of_stream(response: aiohttp.ClientResponse) -> str | None:
    reader, finished = EventReader(), False
    async for chunk in response.content.iter_any():
        for event in map(json.loads, reader.feed(chunk)):
            if "error" in event:
                return "an error in its stream"
            finished |= any(choice["finish_reason"] for choice in event["choices"])
    return None if finished and reader.done else "truncated"
