"""One HTTP server that requests are passed on to, byte by byte as it answers.

It is used in two environments that are not the control plane's: in a Bento's, and in the `openai`
engine's by path. So it needs nothing but aiohttp.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import aiohttp


class NoAnswer(Exception):
    """The server cannot be reached, or closed the connection before it answered."""


class Upstream:
    """A server and the connections to it. Belongs to the event loop that uses it first.

    Args:
        url: what a request's path is appended to.
        decompress: whether bodies are unpacked on their way; only where `Content-Encoding` is not
            passed back.
    """

    def __init__(self, url: str, *, decompress: bool) -> None:
        self._url = url
        self._decompress = decompress
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        body: bytes,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Pass a request on; the block gets the answer as soon as its status is known.

        Leaving the block early hangs up, which tells the server that nobody waits any more.

        Raises:
            NoAnswer: the server did not answer. What breaks later, within the block, is an
                `aiohttp.ClientError`: the status has been passed back by then.
        """
        # Not in the constructor: aiohttp wants a session made within the loop that uses it.
        if self._session is None:
            self._session = open_session(decompress=self._decompress)
        try:
            response = await self._session.request(
                method, f"{self._url}{path}", data=body or None, headers=headers
            )
        except aiohttp.ClientError as exc:
            raise NoAnswer(f"{type(exc).__name__}: {exc}") from exc
        async with response:
            yield response

    async def close(self) -> None:
        """Close what is still open."""
        if self._session is not None:
            await self._session.close()


def open_session(base_url: str | None = None, *, decompress: bool) -> aiohttp.ClientSession:
    """Return a session without limits of its own: the server and the client have theirs."""
    return aiohttp.ClientSession(
        base_url,
        timeout=aiohttp.ClientTimeout(total=None),
        # llama-server closes a connection after a stream while it promises to keep it.
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        auto_decompress=decompress,
    )
