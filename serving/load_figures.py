"""What a run of the load generator showed, computed from the streams that it saw.

Apart from the generator itself, because recipes hold these figures and must not import an event
loop for that.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.formatting import one_line
from weighbridge.serving.latencies import Latencies
from weighbridge.serving.load_streams import StreamedAnswer
from weighbridge.serving.quantiles import Decided

SAME_MOMENT: Final = 0.01
"""Seconds between an answer's end and that its stream finds nothing more to send."""
MOST_LAG: Final = 0.05
"""Part of the limit by which the generator itself may be late."""


class SpeedLimits(BaseModel):
    """What an answer must keep to count: the objective of a service."""

    model_config = ConfigDict(frozen=True)

    ttft: float | None = Field(None, gt=0, description="Seconds to the first token.")
    tpot: float | None = Field(None, gt=0, description="Seconds per token after the first.")
    percentile: float = Field(
        0.95, gt=0, lt=1, description="Which part of all requests must keep both."
    )

    def kept_by(self, answer: StreamedAnswer) -> bool:
        """Whether it was answered whole and in time."""
        if not answer.whole:
            return False
        late = self.ttft is not None and (
            not answer.arrivals or answer.arrivals[0] - answer.started > self.ttft
        )
        slow = self.tpot is not None and answer.tpot is not None and answer.tpot > self.tpot
        return not (late or slow)

    def may_be_kept_by(self, answer: StreamedAnswer, now: float, most_tokens: int) -> bool:
        """Whether one that is under way may still be answered in time, of so many tokens."""
        first = answer.arrivals[0] if answer.arrivals else now
        if self.ttft is not None and first - answer.started > self.ttft:
            return False
        return self.tpot is None or now - first <= self.tpot * most_tokens


class LoadFigures(BaseModel):
    """One run at one concurrency or rate. Times in seconds, of the span in which it was steady.

    A figure is None where nothing was seen that it could be of.
    """

    model_config = ConfigDict(frozen=True)

    concurrency: int = Field(description="Requests under way together; of a rate: the most seen.")
    requests: int
    errors: int = Field(description="Failed or truncated.")
    first_error: str | None = Field(None, description="What the first of them said.")
    output_tokens: int
    seconds: float
    tokens_per_second: float = Field(description="Output tokens of all streams together.")
    requests_per_second: float
    ttft_p50: float | None = Field(description="Time to first token, median.")
    ttft_p95: float | None
    itl_p50: float | None = Field(
        description="Time between two pieces of an answer, of one or more tokens, median."
    )
    itl_p95: float | None
    tpot_p50: float | None = Field(
        None, description="Per request, (last - first) / (tokens - 1), median."
    )
    tpot_p95: float | None = None
    unfinished: int = Field(
        0, description="Under way when the run ended: in every percentile with their age."
    )
    answer_tokens: float | None = Field(
        None, description="Output tokens of an answer, mean of those answered whole."
    )
    uncounted: int = Field(
        0, description="Whole answers whose tokens the engine did not count: their pieces were."
    )
    goodput: float | None = Field(
        None, description="Requests per second that were answered whole and kept the limits."
    )
    ttft: Latencies | None = Field(None, description="All of them, for whoever sets a limit.")
    tpot: Latencies | None = None
    cached_share: float | None = Field(
        None, description="Part of the prompts' tokens that the engine had in its prefix cache."
    )
    warm_up_seconds: float = Field(0.0, description="Before the span that the figures are of.")
    warm_up_requests: int = Field(
        0, description="Begun before that span and answered whole: in none of the latencies."
    )
    cpu_seconds: float | None = Field(
        None,
        description="Processor time of the engine's process group in the whole run, warm-up "
        "included; None where the engine is not ours to look into.",
    )
    rate: float | None = Field(
        None, description="Requests per second that were sent, as a Poisson process; None: closed."
    )
    lag_p95: float | None = Field(
        None, description="How late the generator itself sent its requests."
    )
    within: float | None = Field(
        None, description="Part of the requests that were answered whole and kept the limits."
    )
    saturated: bool = Field(False, description="Ended early: more came than was answered.")
    objective: Decided | None = Field(
        None, description="Whether the limits are kept; None where none were given."
    )

    @property
    def cpu_seconds_per_request(self) -> float | None:
        """Return the engine's processor time by request that was answered whole."""
        whole = self.requests - self.errors - self.unfinished
        return None if self.cpu_seconds is None or whole < 1 else self.cpu_seconds / whole

    @property
    def useful_requests_per_second(self) -> float:
        """Return those that were answered whole and kept the limits, where any were given."""
        return self.requests_per_second if self.goodput is None else self.goodput

    @property
    def useful_tokens_per_second(self) -> float:
        """Return the tokens of such answers alone."""
        if not self.requests_per_second:
            return self.tokens_per_second
        share = self.useful_requests_per_second / self.requests_per_second
        return self.tokens_per_second * share

    def void(self, limits: SpeedLimits) -> bool:
        """Whether the generator itself was too late for its figures to be the engine's."""
        return (
            self.lag_p95 is not None
            and limits.ttft is not None
            and self.lag_p95 > MOST_LAG * limits.ttft
        )


def figures_of(
    answers: Sequence[StreamedAnswer],
    concurrency: int,
    started: float,
    exhausted: float,
    now: float,
    limits: SpeedLimits | None = None,
) -> LoadFigures:
    """Return the figures of the steady span; of the whole run, where there is no such span.

    Args:
        answers: everything that was asked, failures and what is under way included.
        concurrency: how many streams there were.
        started: when the run began.
        exhausted: when the first stream found that nothing new was to be sent.
        now: when what was under way was cut off.
        limits: which answers count for the goodput.
    """
    begin, end = _steady_span(answers, concurrency, started, exhausted)
    # One that began before the span may have met an idle engine: only if it was not answered does
    # it count all the same. Where all began before, all count.
    steady = [answer for answer in answers if answer.started >= begin or not answer.whole]
    measured = steady if any(answer.started >= begin for answer in steady) else answers
    ended = [answer for answer in answers if begin < answer.ended <= end]
    return summary(answers, measured, ended, concurrency, (begin, end), now, limits)


def summary(
    answers: Sequence[StreamedAnswer],
    measured: Sequence[StreamedAnswer],
    counted: Sequence[StreamedAnswer],
    concurrency: int,
    span: tuple[float, float],
    now: float,
    limits: SpeedLimits | None,
) -> LoadFigures:
    """Return figures of a run whose steady span is known.

    Args:
        answers: everything that was asked.
        measured: those whose latencies count.
        counted: those that the requests per second are of.
        concurrency: how many were under way together.
        span: when it began and ended.
        now: when what was under way was cut off.
        limits: which answers count for the goodput.
    """
    # Everything is divided by it: never 0, however short the run.
    seconds = max(span[1] - span[0], 1e-9)
    tokens = _tokens_in(answers, span)
    whole = [answer for answer in answers if answer.whole]
    ttft, tpot, itl = _ttft(measured, now), _tpot(measured, now), _itl(measured, now)
    limits = limits or SpeedLimits()
    return LoadFigures(
        concurrency=concurrency,
        requests=len(answers),
        errors=sum(1 for answer in answers if answer.error is not None),
        first_error=next(
            (one_line(answer.error) for answer in answers if answer.error is not None), None
        ),
        unfinished=sum(1 for answer in answers if not answer.ended),
        output_tokens=round(tokens),
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        requests_per_second=sum(1 for answer in counted if answer.whole) / seconds,
        goodput=sum(1 for answer in counted if limits.kept_by(answer)) / seconds,
        ttft_p50=ttft.percentile(0.5),
        ttft_p95=ttft.percentile(0.95),
        tpot_p50=tpot.percentile(0.5),
        tpot_p95=tpot.percentile(0.95),
        itl_p50=itl.percentile(0.5),
        itl_p95=itl.percentile(0.95),
        answer_tokens=statistics.fmean(answer.tokens for answer in whole) if whole else None,
        uncounted=sum(1 for answer in whole if not answer.counted),
        ttft=ttft,
        tpot=tpot,
        cached_share=_cached_share(answers),
        warm_up_seconds=max(0.0, span[0] - answers[0].started),
        warm_up_requests=len(answers) - len(measured),
    )


def _ttft(answers: Sequence[StreamedAnswer], now: float) -> Latencies:
    silent = [answer for answer in answers if not answer.arrivals]
    return Latencies.of(
        (answer.arrivals[0] - answer.started for answer in answers if answer.arrivals),
        (now - answer.started for answer in silent if not answer.ended),
        sum(1 for answer in silent if answer.error is not None),
    )


def _tpot(answers: Sequence[StreamedAnswer], now: float) -> Latencies:
    """Return TPOT of every request; of one under way, what it comes to if a token came now."""
    begun = [answer for answer in answers if answer.arrivals]
    return Latencies.of(
        (pace for answer in begun if answer.whole and (pace := answer.tpot) is not None),
        ((now - answer.arrivals[0]) / sum(answer.pieces) for answer in begun if not answer.ended),
        sum(1 for answer in answers if answer.error is not None),
    )


def _itl(answers: Sequence[StreamedAnswer], now: float) -> Latencies:
    gaps = (
        later - earlier
        for answer in answers
        for earlier, later in itertools.pairwise(answer.arrivals)
    )
    waits = (answer.silence(now) for answer in answers if answer.arrivals and not answer.ended)
    return Latencies.of(gaps, waits)


def _steady_span(
    answers: Sequence[StreamedAnswer], concurrency: int, started: float, exhausted: float
) -> tuple[float, float]:
    """Return begin and end of the time in which all streams were busy.

    It begins when as many answers have ended as there are streams: the first ones all start at
    once, on an idle engine, and are not what a request meets under load. Where what was to be sent
    is used up, it ends with a whole number of such rounds: an engine that answers all streams in
    step has next to none of the last round's answers done when the first of them is, and would be
    called slower by nearly a round.
    """
    ended = sorted(answer.ended for answer in answers if answer.ended)
    if len(ended) <= concurrency or ended[concurrency - 1] >= exhausted:
        return started, max([exhausted, *ended])
    begin, before = ended[concurrency - 1], [moment for moment in ended if moment <= exhausted]
    rounds = len(before) // concurrency
    # Not where time ran out: what was silent until then belongs to it.
    if rounds > 1 and exhausted - before[-1] < SAME_MOMENT:
        return begin, before[rounds * concurrency - 1]
    return begin, exhausted


def _tokens_in(answers: Sequence[StreamedAnswer], span: tuple[float, float]) -> float:
    """Return how many tokens came in the span, failed answers left out. A delta may hold several
    tokens, or half of one: each counts its share; of an answer under way, as those of the others.
    """
    whole = [answer for answer in answers if answer.whole]
    deltas = sum(sum(answer.pieces) for answer in whole)
    per_delta = sum(answer.tokens for answer in whole) / deltas if deltas else 1.0
    total = 0.0
    for answer in answers:
        if answer.error is None and answer.arrivals:
            inside = sum(
                count
                for arrival, count in zip(answer.arrivals, answer.pieces, strict=True)
                if span[0] < arrival <= span[1]
            )
            share = answer.tokens / sum(answer.pieces) if answer.ended else per_delta
            total += inside * share
    return total


def _cached_share(answers: Sequence[StreamedAnswer]) -> float | None:
    told = [answer for answer in answers if answer.cached_tokens is not None]
    prompts = sum(answer.prompt_tokens or 0 for answer in told)
    return sum(answer.cached_tokens or 0 for answer in told) / prompts if prompts else None
