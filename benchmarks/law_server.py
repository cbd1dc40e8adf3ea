"""A server of a known law, for the load generator's benchmark: one queue, exponential services.

Usage: python -m benchmarks.law_server PORT SERVICE [--seed N] [--tokens N] [--piece N] [--pace S]
[--hang-every N]
"""

import argparse
import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator

from aiohttp import web


def services(mean: float, seed: int) -> Iterator[float]:
    """Yield the seconds that each request holds the server before its first token."""
    # Of another stream than arrivals of the same seed: they must not go together.
    drawn = random.Random(f"services {seed}")
    return (drawn.expovariate(1 / mean) for _ in itertools.count())


class LawServer:
    """Answers one request after the other up to its first token; tokens then come at their pace,
    however many answers are under way.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._services = services(args.service, args.seed)
        self._free = 0.0
        self._asked = itertools.count(1)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Stream an answer."""
        now = time.perf_counter()
        self._free = max(now, self._free) + next(self._services)
        first, args = self._free, self._args
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if args.hang_every and next(self._asked) % args.hang_every == 0:
            await asyncio.sleep(3600)
        for number in range(0, args.tokens, args.piece):
            await asyncio.sleep(first + number * args.pace - time.perf_counter())
            await response.write(_event({"text": "a", "finish_reason": None}))
        await response.write(_event({"text": "", "finish_reason": "length"}, args.tokens))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(choice: dict[str, object], tokens: int | None = None) -> bytes:
    usage = {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return b"data: " + json.dumps({"choices": [choice], **usage}).encode() + b"\n\n"


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "law", "object": "model"}]})


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A server of a known law.")
    parser.add_argument("port", type=int)
    parser.add_argument("service", type=float, help="mean seconds before a first token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=2)
    parser.add_argument("--piece", type=int, default=1)
    parser.add_argument("--pace", type=float, default=0.002, help="seconds per token")
    parser.add_argument("--hang-every", type=int, default=0)
    args = parser.parse_args()
    app = web.Application()
    app.router.add_post("/v1/completions", LawServer(args).answer)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _models)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
