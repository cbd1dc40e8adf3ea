"""Load generator: what an OpenAI endpoint does under a given concurrency.

Usage: ``python -m weighbridge.serving.load URL --concurrency 1,4,8``.
"""

from __future__ import annotations

import argparse
import ipaddress
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import BadInput
from weighbridge.serving.openai_client import Client

if TYPE_CHECKING:
    from weighbridge.serving.load_streams import LoadRun, StreamedAnswer

Payload = Mapping[str, Any]
"""Body of one request: with `messages` for the chat, with `prompt` for plain text."""


class LoadFigures(BaseModel):
    """One run at one concurrency. Times in seconds, of the span in which all streams were busy."""

    model_config = ConfigDict(frozen=True)

    concurrency: int
    requests: int
    errors: int = Field(description="Failed or truncated.")
    output_tokens: int
    seconds: float
    tokens_per_second: float = Field(description="Output tokens of all streams together.")
    requests_per_second: float
    ttft_p50: float = Field(description="Time to first token, median.")
    ttft_p95: float
    itl_p50: float = Field(description="Inter-token latency, median.")
    itl_p95: float


def run_load(
    url: str,
    payloads: Sequence[Payload],
    concurrency: int,
    *,
    seconds: float = 0.0,
    requests: int | None = None,
    max_seconds: float = 60.0,
    timeout: float = 120.0,
    remote: bool = False,
) -> LoadFigures:
    """Send the payloads in their order, each once and streamed, `concurrency` at a time.

    Figures are of the steady span: from the moment as many requests have ended as there are
    streams, until no new one is sent, which is when the payloads are used up, or `requests` of them
    after at least `seconds`. After `max_seconds` what is under way is dropped.

    Raises: BadInput: there are too few payloads to fill the streams, or the host is another
        machine's and `remote` is off. Unavailable: nobody answers at `url`.
    """
    from weighbridge.serving.load_streams import (
        LoadRun,
    )  # recipes need the figures' model, and no event loop

    _check(url, payloads, concurrency, remote=remote)
    enough = len(payloads) if requests is None else max(requests, 4 * concurrency)
    run = LoadRun(url, payloads, concurrency, enough, seconds, timeout, Client(url, timeout).model)
    run.go(max_seconds)
    return _figures(run, concurrency)


def _check(url: str, payloads: Sequence[Payload], concurrency: int, *, remote: bool) -> None:
    doing = f"measuring {url} under load"
    if not remote and not _is_loopback(urlsplit(url).hostname or ""):
        raise BadInput(
            doing, "it is not on this machine", "allow it explicitly: --remote, or remote=True"
        )
    if concurrency < 1 or len(payloads) < 2 * concurrency:
        raise BadInput(
            doing,
            f"{len(payloads)} requests are too few for {concurrency} streams",
            "give at least twice",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _figures(run: LoadRun, concurrency: int) -> LoadFigures:
    """Figures of the steady span; of the whole run, where there is none."""
    streams = run.streams
    ended = sorted(stream.ended for stream in streams if stream.ended)
    steady = len(ended) > concurrency and ended[concurrency - 1] < run.exhausted
    begin, end = (
        (ended[concurrency - 1], run.exhausted)
        if steady
        else (run.started, max([run.exhausted, *ended]))
    )
    span = max(end - begin, 1e-9)
    good = [stream for stream in streams if not stream.error]
    inside = [stream for stream in good if stream.started >= begin] or good
    tokens = sum(_tokens_between(stream, begin, end) for stream in good)
    ttft = sorted(stream.arrivals[0] - stream.started for stream in inside if stream.arrivals)
    itl = sorted(gap for stream in inside for gap in _gaps(stream))
    finished = sum(1 for stream in good if begin < stream.ended <= end)
    return LoadFigures(
        concurrency=concurrency,
        requests=len(streams),
        errors=sum(1 for stream in streams if stream.error),
        output_tokens=round(tokens),
        seconds=span,
        tokens_per_second=tokens / span,
        requests_per_second=finished / span,
        ttft_p50=percentile(ttft, 0.5),
        ttft_p95=percentile(ttft, 0.95),
        itl_p50=percentile(itl, 0.5),
        itl_p95=percentile(itl, 0.95),
    )


def _tokens_between(stream: StreamedAnswer, begin: float, end: float) -> float:
    """Tokens that came in the span. A piece may hold several, or half of one: each counts its
    share.
    """
    if not stream.arrivals:
        return 0.0
    inside = sum(1 for arrival in stream.arrivals if begin < arrival <= end)
    return inside * (stream.tokens or len(stream.arrivals)) / len(stream.arrivals)


def _gaps(stream: StreamedAnswer) -> Iterator[float]:
    return (later - earlier for earlier, later in itertools.pairwise(stream.arrivals))


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value below which `part` of the ordered values lie, between neighbours where needed; 0 of
    nothing.
    """
    if not ordered:
        return 0.0
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def made_up_payloads(count: int, max_tokens: int) -> list[Payload]:
    """Deterministic questions, each with a beginning of its own, so that no prompt cache answers
    for the engine.
    """
    return [
        {
            "messages": [{"role": "user", "content": f"{n}: Tell me about the number {n}."}],
            "max_tokens": max_tokens,
        }
        for n in range(count)
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Measure an endpoint and print one line per concurrency."""
    parser = argparse.ArgumentParser(
        prog="python -m weighbridge.serving.load", description="Measure an OpenAI endpoint."
    )
    parser.add_argument("url", help="base address, with or without /v1")
    parser.add_argument(
        "--concurrency", default="1,4,8", help="one number or several, with commas (%(default)s)"
    )
    parser.add_argument("--requests", type=int, default=64, help="per concurrency (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, help="of one answer (%(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=60, help="per concurrency (%(default)s)"
    )
    parser.add_argument(
        "--remote", action="store_true", help="allow a host other than this machine"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per concurrency")
    args = parser.parse_args(words)
    for level in (int(word) for word in args.concurrency.split(",")):
        payloads = made_up_payloads(max(args.requests, 4 * level), args.max_tokens)
        cpu = time.process_time()
        figures = run_load(
            args.url, payloads, level, max_seconds=args.max_seconds, remote=args.remote
        )
        spent = time.process_time() - cpu
        print(figures.model_dump_json() if args.json else _line(figures, spent), flush=True)


def _line(figures: LoadFigures, cpu: float) -> str:
    return (
        f"concurrency {figures.concurrency:3d}: {figures.tokens_per_second:8.1f} tokens/s, "
        f"{figures.requests_per_second:6.2f} requests/s, first token {figures.ttft_p50 * 1000:.0f} ms "
        f"(p95 {figures.ttft_p95 * 1000:.0f}), between tokens {figures.itl_p50 * 1000:.1f} ms "
        f"(p95 {figures.itl_p95 * 1000:.1f}), {figures.errors} of {figures.requests} failed, "
        f"own CPU {cpu:.2f} s"
    )


if __name__ == "__main__":
    main()
