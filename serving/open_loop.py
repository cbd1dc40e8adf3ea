"""Open loop: requests come as a Poisson process, whether or not the ones before were answered.

Latencies count from the moment a request was to be sent. An engine that is too slow cannot slow
down what comes, as it does in a closed loop: this is how users come.
"""

import asyncio
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Final

import aiohttp

from weighbridge.core.errors import BadInput
from weighbridge.serving.load_figures import LoadFigures, SpeedLimits, summary
from weighbridge.serving.load_sender import Sender, cancel
from weighbridge.serving.load_streams import StreamedAnswer
from weighbridge.serving.openai_client import Payload
from weighbridge.serving.quantiles import Decided, decide
from weighbridge.serving.steadiness import WARM_UP, WORTH, independent, is_saturated

UNBOUNDED: Final = 1_000_000
"""Tokens of an answer whose request sets no bound."""
DRAIN_POLL: Final = 0.02
"""Seconds between two looks at whether all is answered."""


def run_rate(
    sender: Sender,
    payloads: Sequence[Payload],
    rate: float,
    limits: SpeedLimits,
    *,
    requests: int = 200,
    seconds: float = math.inf,
    seed: int = 0,
) -> LoadFigures:
    """Send `rate` requests per second, as many as are asked for or fit into the seconds; ended
    early where the engine is seen to be saturated.

    The same seed gives the same arrivals, at another rate the same ones faster or slower.

    Raises:
        BadInput: there is no limit to the time to the first token, by which saturation is known.
    """
    if limits.ttft is None:
        raise BadInput(
            "measuring at a rate",
            "no limit of the time to the first token is given",
            "set weigh.ttft_limit, or --ttft",
        )
    run = RateRun(sender, payloads, rate, limits, seed)
    asyncio.run(run.go(requests, seconds))
    return run.figures()


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield the moments of a Poisson process, in seconds from its beginning."""
    drawn = random.Random(seed)
    return itertools.accumulate(drawn.expovariate(1.0) / rate for _ in itertools.count())


class RateRun:
    """One run at one rate."""

    def __init__(
        self,
        sender: Sender,
        payloads: Sequence[Payload],
        rate: float,
        limits: SpeedLimits,
        seed: int,
    ) -> None:
        self.answers: list[StreamedAnswer] = []
        self.saturated = False
        self._sender = sender
        self._payloads = itertools.cycle(payloads)
        self._most_tokens = max(payload.get("max_tokens", UNBOUNDED) for payload in payloads)
        self._rate = rate
        self._limits = limits
        self._seed = seed
        self._under_way: list[int] = []
        """How many were under way at each arrival."""
        self._open = 0
        self._ended = 0.0

    async def go(self, requests: int, seconds: float) -> None:
        """Send, and wait for whatever may still keep the limits."""
        async with self._sender.session() as session:
            tasks = await self._send_all(session, requests, seconds)
            while any(not task.done() for task in tasks) and self._may_be_kept():
                await asyncio.sleep(DRAIN_POLL)
            self._ended = time.perf_counter()
            await cancel(tasks)

    async def _send_all(
        self, session: aiohttp.ClientSession, requests: int, seconds: float
    ) -> list[asyncio.Task[None]]:
        tasks: list[asyncio.Task[None]] = []
        began = time.perf_counter()
        for moment in itertools.islice(poisson(self._rate, self._seed), requests):
            if moment > seconds or self._is_saturated():
                break
            await asyncio.sleep(began + moment - time.perf_counter())
            answer = StreamedAnswer(began + moment)
            self.answers.append(answer)
            self._under_way.append(self._open)
            tasks.append(asyncio.create_task(self._send(session, answer)))
        return tasks

    async def _send(self, session: aiohttp.ClientSession, answer: StreamedAnswer) -> None:
        self._open += 1
        await self._sender.send(session, next(self._payloads), answer)
        self._open -= 1

    def _is_saturated(self) -> bool:
        # At every tenth arrival: it goes through all of them.
        if len(self.answers) % 10 == 0:
            times = [answer.started for answer in self.answers]
            waits = _waits(self.answers, time.perf_counter())
            limit = self._limits.ttft or math.inf
            self.saturated = is_saturated(times, self._under_way, waits, limit)
        return self.saturated

    def _may_be_kept(self) -> bool:
        """Whether something under way could still be answered in time, were it to go on."""
        now = time.perf_counter()
        return not self.saturated and any(
            not answer.ended and self._limits.may_be_kept_by(answer, now, self._most_tokens)
            for answer in self.answers
        )

    def figures(self) -> LoadFigures:
        """Return what was seen of the requests after the warm-up."""
        measured = self.answers[round(WARM_UP * len(self.answers)) :]
        if not measured:
            raise BadInput(
                f"measuring at {self._rate:.3g} requests per second",
                "not one request was to be sent in that time",
                "give more seconds or requests (weigh.rate_seconds)",
            )
        # Until the next one would have come, on average: n arrivals are n gaps.
        span = measured[0].started, measured[-1].started + 1 / self._rate
        figures = summary(
            self.answers,
            measured,
            measured,
            max(self._under_way) + 1,
            span,
            self._ended,
            self._limits,
        )
        lags = sorted(answer.sent - answer.started for answer in measured if answer.sent)
        lag = lags[math.ceil(0.95 * len(lags)) - 1] if lags else None
        within = sum(1 for answer in measured if self._limits.kept_by(answer))
        return figures.model_copy(
            update={
                "rate": self._rate,
                "lag_p95": lag,
                "within": within / len(measured),
                "saturated": self.saturated,
                "objective": self._verdict(measured, within),
            }
        )

    def _verdict(self, measured: Sequence[StreamedAnswer], within: int) -> Decided:
        """Return whether the limits are kept, by as many requests as these are worth: those that
        wait for each other say less than as many independent ones.
        """
        if self.saturated:
            return "missed"
        beyond = len(measured) - within
        worth = WORTH * independent(_waits(measured, self._ended))
        share = worth / len(measured)
        overruns = math.floor(beyond * share), math.ceil(beyond * share)
        return decide(overruns, int(worth), self._limits.percentile)


def _waits(answers: Sequence[StreamedAnswer], now: float) -> list[float]:
    """Return times to the first token in the order of arrival; of who has none yet, its age."""
    return [
        (answer.arrivals[0] if answer.arrivals else answer.ended or now) - answer.started
        for answer in answers
    ]
