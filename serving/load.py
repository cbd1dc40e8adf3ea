"""Load generator: what an OpenAI endpoint does under a given concurrency, or at a given rate.

Usage: ``python -m weighbridge.serving.load URL --concurrency 1,4,8``, or ``--rate 2,5 --ttft 0.5``.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

import aiohttp

from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.serving.latencies import Latencies
from weighbridge.serving.load_figures import LoadFigures, SpeedLimits, figures_of
from weighbridge.serving.load_prompts import given_payloads
from weighbridge.serving.load_sender import Sender, cancel
from weighbridge.serving.load_streams import StreamedAnswer
from weighbridge.serving.open_loop import run_rate
from weighbridge.serving.openai_client import Client, Payload
from weighbridge.serving.rate_search import highest_rate, lateness
from weighbridge.serving.steadiness import requests_at

N = TypeVar("N", int, float)
TIMEOUT: Final = 120.0
"""Seconds that one answer may take."""
SILENCE_POLL: Final = 0.05
"""Seconds between two looks at what is still under way."""


def run_load(
    url: str,
    payloads: Sequence[Payload],
    concurrency: int,
    *,
    seconds: float = 0.0,
    requests: int | None = None,
    max_seconds: float = 60.0,
    timeout: float = TIMEOUT,
    limits: SpeedLimits | None = None,
    wait_for_silent: bool = True,
    remote: bool = False,
) -> LoadFigures:
    """Send the payloads in their order, each once and streamed, `concurrency` at a time.

    Figures are of the steady span: from the moment as many requests have ended as there are
    streams, until no new one is sent, which is when the payloads are used up, or `requests` of them
    after at least `seconds`, or after `max_seconds`. What is under way then is cut off, and counts
    with its age; but a request that has been silent for longer than any answered one ever was is
    waited for until something comes or `timeout` makes it an error, unless `wait_for_silent` is
    off.

    Raises:
        BadInput: there are too few payloads to fill the streams, or the host is another machine's
            and `remote` is off.
        Unavailable: nobody answers at `url`.
    """
    _check(url, payloads, concurrency, remote=remote)
    enough = len(payloads) if requests is None else requests_at(requests, concurrency)
    sender = Sender(url, Client(url, timeout).model, timeout)
    run = LoadRun(sender, payloads, concurrency, enough, seconds)
    run.go(max_seconds, wait_for_silent)
    return figures_of(run.answers, concurrency, run.started, run.exhausted, run.ended, limits)


def _check(url: str, payloads: Sequence[Payload], concurrency: int, *, remote: bool) -> None:
    doing = f"measuring {url} under load"
    if not remote and not _is_loopback(urlsplit(url).hostname or ""):
        raise BadInput(
            doing, "it is not on this machine", "allow it explicitly: --remote, or remote=True"
        )
    # The steady span begins when as many answers have ended as there are streams: something must be
    # left to send then.
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


class LoadRun:
    """Workers that take the next payload as soon as their last answer is there."""

    def __init__(
        self,
        sender: Sender,
        payloads: Sequence[Payload],
        concurrency: int,
        enough: int,
        seconds: float,
    ) -> None:
        self.answers: list[StreamedAnswer] = []
        self.started = 0.0
        self.exhausted = 0.0
        """When the first worker found that nothing new is to be sent."""
        self.ended = 0.0
        """When what was still under way was cut off."""
        self._sender = sender
        self._payloads = iter(payloads)
        self._concurrency = concurrency
        self._enough = enough
        self._seconds = seconds

    def go(self, max_seconds: float, wait_for_silent: bool) -> None:
        """Send everything, or what fits into `max_seconds`."""
        asyncio.run(self._go(max_seconds, wait_for_silent))

    async def _go(self, max_seconds: float, wait_for_silent: bool) -> None:
        async with self._sender.session() as session:
            self.started = time.perf_counter()
            workers = [asyncio.create_task(self._work(session)) for _ in range(self._concurrency)]
            await asyncio.wait(workers, timeout=max_seconds)
            self.exhausted = self.exhausted or time.perf_counter()
            while wait_for_silent and self._is_silent(time.perf_counter()):
                await asyncio.sleep(SILENCE_POLL)
            self.ended = time.perf_counter()
            await cancel(workers)

    def _is_silent(self, now: float) -> bool:
        """Whether something under way has been silent for longer than any answered request."""
        longest = max(
            (answer.longest_silence() for answer in self.answers if answer.whole), default=0.0
        )
        return any(not answer.ended and answer.silence(now) > longest for answer in self.answers)

    async def _work(self, session: aiohttp.ClientSession) -> None:
        for payload in self._payloads:
            answer = StreamedAnswer(time.perf_counter())
            self.answers.append(answer)
            await self._sender.send(session, payload, answer)
            if self.exhausted or self._has_enough():
                break
        self.exhausted = self.exhausted or time.perf_counter()

    def _has_enough(self) -> bool:
        return (
            len(self.answers) >= self._enough
            and time.perf_counter() >= self.started + self._seconds
        )


def made_up_payloads(count: int, max_tokens: int) -> list[Payload]:
    """Return `count` questions, the same ones every time, each with a beginning of its own, so that
    no prompt cache answers for the engine.
    """
    return [
        {
            "messages": [{"role": "user", "content": f"{n}: Tell me about the number {n}."}],
            "max_tokens": max_tokens,
        }
        for n in range(count)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure an endpoint and print one line per concurrency or rate."""
    try:
        _measure(_parser().parse_args(arguments))
    except WeighbridgeError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weighbridge.serving.load", description="Measure an OpenAI endpoint."
    )
    parser.add_argument("url", help="base address, with or without /v1")
    parser.add_argument(
        "--concurrency",
        type=_each(_COUNT),
        default=[1, 4, 8],
        help="one number or several, with commas (1,4,8)",
    )
    parser.add_argument(
        "--rate",
        type=_rates,
        help="requests per second instead, as a Poisson process: numbers with commas, or `highest` "
        "for the highest at which the limits hold",
    )
    parser.add_argument("--ttft", type=_ABOVE_0, help="limit in seconds; needed with --rate")
    parser.add_argument("--tpot", type=_ABOVE_0, help="limit in seconds")
    parser.add_argument(
        "--percentile", type=_SHARE, default=0.95, help="which must keep them (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals (%(default)s)")
    parser.add_argument(
        "--prompts",
        type=Path,
        help="JSON lines with `messages` or `prompt`, as those of a recipe's data, instead of "
        "made-up questions",
    )
    parser.add_argument(
        "--requests", type=_COUNT, default=120, help="per concurrency or rate (%(default)s)"
    )
    parser.add_argument("--max-tokens", type=_COUNT, default=64, help="of one answer (%(default)s)")
    parser.add_argument(
        "--max-seconds", type=_ABOVE_0, default=60, help="per concurrency or rate (%(default)s)"
    )
    parser.add_argument(
        "--remote", action="store_true", help="allow a host other than this machine"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    return parser


def _number(read: Callable[[str], N], fits: Callable[[N], bool], what: str) -> Callable[[str], N]:
    """Return a type of an option: argparse's own words on a text that is none name a function."""

    def number(text: str) -> N:
        with contextlib.suppress(ValueError):
            if fits(value := read(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

    return number


_ABOVE_0 = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
_SHARE = _number(float, lambda value: 0 < value < 1, "a number between 0 and 1")
_COUNT = _number(int, lambda value: value >= 1, "a whole number from 1 on")


def _each(one: Callable[[str], N]) -> Callable[[str], list[N]]:
    def numbers(text: str) -> list[N]:
        return [one(part) for part in text.split(",")]

    return numbers


def _rates(text: str) -> list[float] | Literal["highest"]:
    return "highest" if text == "highest" else _each(_ABOVE_0)(text)


def _measure(args: argparse.Namespace) -> None:
    for run in _at_rates(args) if args.rate else _at_levels(args):
        cpu = time.process_time()
        figures = run()
        spent = time.process_time() - cpu
        print(
            figures.model_dump_json() if args.json else _line(figures, _limits(args), spent),
            flush=True,
        )


def _limits(args: argparse.Namespace) -> SpeedLimits:
    return SpeedLimits(ttft=args.ttft, tpot=args.tpot, percentile=args.percentile)


def _payloads(args: argparse.Namespace, count: int) -> list[Payload]:
    if args.prompts is None:
        return made_up_payloads(count, args.max_tokens)
    return given_payloads(args.prompts, count, args.max_tokens)


def _at_levels(args: argparse.Namespace) -> Iterator[Callable[[], LoadFigures]]:
    for level in args.concurrency:
        yield partial(
            run_load,
            args.url,
            _payloads(args, requests_at(args.requests, level)),
            level,
            max_seconds=args.max_seconds,
            limits=_limits(args),
            remote=args.remote,
        )


def _at_rates(args: argparse.Namespace) -> Iterator[Callable[[], LoadFigures]]:
    payloads, limits = _payloads(args, args.requests), _limits(args)
    _check(args.url, payloads, 1, remote=args.remote)
    sender = Sender(args.url, Client(args.url).model, TIMEOUT)
    run = partial(
        run_rate,
        sender,
        payloads,
        limits=limits,
        requests=args.requests,
        seconds=args.max_seconds,
        seed=args.seed,
    )
    if args.rate != "highest":
        yield from (partial(run, rate) for rate in args.rate)
        return
    closed = run_load(args.url, payloads, 4, requests=16, remote=args.remote)
    _, tried = highest_rate(run, limits, max(closed.requests_per_second, 0.1))
    yield from (partial(lambda seen: seen, figures) for figures in tried)


def _line(figures: LoadFigures, limits: SpeedLimits, cpu: float) -> str:
    at = f"concurrency {figures.concurrency:3d}"
    if figures.rate is not None:
        verdict = "saturated" if figures.saturated else f"limits {figures.objective}"
        if figures.void(limits):
            verdict = f"void: {lateness(figures)}"
        at = f"rate {figures.rate:.3g}/s, {figures.within or 0:.1%} within, {verdict}"
    return (
        f"{at}: {figures.tokens_per_second:8.1f} tokens/s, "
        f"{figures.requests_per_second:6.2f} requests/s, "
        f"first token {milliseconds(figures.ttft_p50)}, p95 {_p95(figures.ttft)}, "
        f"per token {milliseconds(figures.tpot_p50)}, p95 {_p95(figures.tpot)}, "
        f"{figures.errors} of {figures.requests} failed{_because(figures)}, "
        f"{figures.unfinished} were cut off, "
        f"own CPU {cpu:.2f} s"
    )


def _p95(latencies: Latencies | None) -> str:
    return latencies.told(0.95) if latencies else "?"


def _because(figures: LoadFigures) -> str:
    return "" if figures.first_error is None else f" (the first: {figures.first_error})"


def milliseconds(seconds: float | None) -> str:
    """Return a time for people, `?` where it is not known."""
    return "?" if seconds is None else f"{seconds * 1000:.3g} ms"


if __name__ == "__main__":
    main()
