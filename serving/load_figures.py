"""What a run of the load generator showed, computed from the streams that it saw.

Apart from the generator itself, because recipes hold these figures and must not import an event
loop for that.
"""

import itertools
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.serving.load_streams import StreamedAnswer


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


def figures_of(
    answers: Sequence[StreamedAnswer], concurrency: int, started: float, exhausted: float
) -> LoadFigures:
    """Return the figures of the steady span; of the whole run, where there is no such span.

    Args:
        answers: everything that was asked, failures included.
        started: when the run began.
        exhausted: when the first stream found that nothing new was to be sent.
    """
    begin, end = _steady_span(answers, concurrency, started, exhausted)
    # Everything is divided by it: never 0, however short the run.
    span = max(end - begin, 1e-9)
    successful = [answer for answer in answers if not answer.error]
    # One that began before the span may have met an idle engine; where all did, all count.
    measured = [answer for answer in successful if answer.started >= begin] or successful
    tokens = sum(_tokens_between(answer, begin, end) for answer in successful)
    ttft = sorted(answer.arrivals[0] - answer.started for answer in measured if answer.arrivals)
    itl = sorted(gap for answer in measured for gap in _gaps(answer))
    return LoadFigures(
        concurrency=concurrency,
        requests=len(answers),
        errors=len(answers) - len(successful),
        output_tokens=round(tokens),
        seconds=span,
        tokens_per_second=tokens / span,
        requests_per_second=sum(1 for answer in successful if begin < answer.ended <= end) / span,
        ttft_p50=percentile(ttft, 0.5),
        ttft_p95=percentile(ttft, 0.95),
        itl_p50=percentile(itl, 0.5),
        itl_p95=percentile(itl, 0.95),
    )


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which `part` of the ordered values lie, between neighbours where
    needed; 0 of nothing.
    """
    if not ordered:
        return 0.0
    position = part * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _steady_span(
    answers: Sequence[StreamedAnswer], concurrency: int, started: float, exhausted: float
) -> tuple[float, float]:
    """Return begin and end of the time in which all streams were busy.

    It begins when as many answers have ended as there are streams: the first ones all start at
    once, on an idle engine, and are not what a request meets under load.
    """
    ended = sorted(answer.ended for answer in answers if answer.ended)
    if len(ended) > concurrency and ended[concurrency - 1] < exhausted:
        return ended[concurrency - 1], exhausted
    return started, max([exhausted, *ended])


def _tokens_between(answer: StreamedAnswer, begin: float, end: float) -> float:
    """Return how many tokens came in the span. A delta may hold several tokens, or half of one:
    each counts its share.
    """
    if not answer.arrivals:
        return 0.0
    inside = sum(1 for arrival in answer.arrivals if begin < arrival <= end)
    return inside * (answer.tokens or len(answer.arrivals)) / len(answer.arrivals)


def _gaps(answer: StreamedAnswer) -> Iterator[float]:
    return (later - earlier for earlier, later in itertools.pairwise(answer.arrivals))
