"""Open loop: what comes does not wait for what was answered, and the highest rate is found."""

import asyncio
import itertools
import math
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.stand_ins.openai import Behaviour, serve
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving import open_loop
from weighbridge.serving.load_figures import LoadFigures, SpeedLimits
from weighbridge.serving.load_sender import Sender
from weighbridge.serving.load_streams import StreamedAnswer
from weighbridge.serving.open_loop import RateRun, poisson, run_rate
from weighbridge.serving.openai_client import Payload
from weighbridge.serving.rate_search import highest_rate
from weighbridge.serving.steadiness import independent, is_saturated

PAYLOADS: list[Payload] = [{"prompt": f"question {n}", "max_tokens": 4} for n in range(40)]
LIMITS = SpeedLimits(ttft=2.0)
"""Late enough for a machine that does other things."""


def run(url: str, rate: float, limits: SpeedLimits = LIMITS) -> LoadFigures:
    return run_rate(Sender(url, "m", 5.0), PAYLOADS, rate, limits, requests=40)


def test_arrivals_are_a_poisson_process_that_its_seed_decides() -> None:
    moments = list(itertools.islice(poisson(10.0, 1), 4000))
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.1, rel=0.05)
    assert moments == list(itertools.islice(poisson(10.0, 1), 4000))
    assert moments[0] == pytest.approx(2 * next(poisson(20.0, 1)))


class Held:
    """A sender whose first request holds up everything, as a busy processor does."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        yield

    async def send(self, _: None, payload: Payload, answer: StreamedAnswer) -> None:
        answer.sent = time.perf_counter()
        if payload == PAYLOADS[0]:
            # That nothing else runs meanwhile is the point.
            time.sleep(0.3)
        answer.close("not asked")


def test_latencies_count_from_when_a_request_was_to_be_sent_and_the_rest_is_our_lag() -> None:
    made = RateRun(Held(), PAYLOADS, 50.0, LIMITS, seed=3)  # type: ignore[arg-type]
    asyncio.run(made.go(10, math.inf))
    starts = [answer.started - made.answers[0].started for answer in made.answers]
    moments = list(itertools.islice(poisson(50.0, 3), 10))
    assert starts == pytest.approx([moment - moments[0] for moment in moments], abs=1e-6)
    assert max(answer.sent - answer.started for answer in made.answers) > 0.1
    assert (made.figures().lag_p95 or 0.0) > 0.1


@pytest.mark.parametrize(("period", "verdict"), [(2, "met"), (100, "undecided")])
def test_requests_that_wait_for_each_other_show_less_than_as_many_independent_ones(
    period: int, verdict: str
) -> None:
    made = RateRun(Held(), PAYLOADS, 50.0, LIMITS, seed=0)  # type: ignore[arg-type]
    for number in range(400):
        wait = 0.5 + 0.4 * math.sin(2 * math.pi * (number + 0.5) / period)
        made.answers.append(StreamedAnswer(float(number), ended=number + wait))
        made.answers[-1].arrivals.append(number + wait)
    # Not one of them is late.
    assert made._verdict(made.answers, len(made.answers)) == verdict


def test_requests_come_whether_or_not_others_are_answered() -> None:
    with serve(Behaviour(first_delay=0.2)) as server:
        figures = run(server.url, 100.0)
        assert server.most_at_once > 8
    assert (figures.requests, figures.errors, figures.unfinished) == (40, 0, 0)
    assert figures.ttft_p50 is not None
    assert 0.2 <= figures.ttft_p50 < 2
    # The first fifth is warm-up; 32 requests without an overrun prove nothing yet.
    assert figures.ttft
    assert (figures.ttft.total, figures.within, figures.objective) == (32, 1.0, "undecided")


def test_what_hangs_is_neither_waited_for_for_ever_nor_lost() -> None:
    with serve(Behaviour(hang_every=4)) as server:
        figures = run(server.url, 100.0, SpeedLimits(ttft=0.5))
    assert figures.unfinished == 10
    assert figures.within == pytest.approx(0.75)
    assert figures.objective == "missed"
    assert figures.ttft_p95 is None


def test_a_stream_that_stalls_does_not_keep_its_pace() -> None:
    with serve(Behaviour(stall_every=4)) as server:
        figures = run(server.url, 100.0, SpeedLimits(ttft=2.0, tpot=0.2))
    assert (figures.unfinished, figures.within) == (10, pytest.approx(0.75))


def test_a_rate_without_a_limit_is_refused() -> None:
    with pytest.raises(BadInput, match=r"weigh\.ttft_limit"):
        run("http://127.0.0.1:9", 1.0, SpeedLimits())


@pytest.mark.parametrize(("rate", "saturated"), [(0.8, False), (1.3, True)])
def test_a_queue_that_grows_for_ever_is_saturated(rate: float, saturated: bool) -> None:
    times, under_way, waits = queue(rate, 300)
    assert is_saturated(times, under_way, waits, limit=15.0) is saturated


def test_a_run_at_a_rate_ends_as_soon_as_it_is_saturated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "is_saturated", lambda times, *unused: len(times) >= 30)
    with serve(Behaviour(first_delay=0.01)) as server:
        figures = run(server.url, 200.0)
    assert (figures.saturated, figures.objective, figures.requests) == (True, "missed", 30)


def test_values_that_follow_each_other_are_worth_fewer_independent_ones() -> None:
    drawn = random.Random(0)
    noise = [drawn.gauss(0, 1) for _ in range(2000)]
    # Autoregression: worth (1 - 0.9) / (1 + 0.9) of them.
    chained = list(itertools.accumulate(noise, lambda before, new: 0.9 * before + new))
    assert independent(noise) > 1500
    assert independent(chained) == pytest.approx(2000 / 19, rel=0.4)
    assert independent([1.0] * 50) == 50


def queue(rate: float, count: int, seed: int = 0) -> tuple[list[float], list[int], list[float]]:
    """Return arrivals at a server that takes a second each, how many it had then, and their
    times there.
    """
    moments = list(itertools.islice(poisson(rate, seed), count))
    ends: list[float] = []
    for moment in moments:
        ends.append(max(moment, ends[-1] if ends else 0.0) + 1.0)
    under_way = [
        sum(1 for end in ends[:number] if end > moment) for number, moment in enumerate(moments)
    ]
    return moments, under_way, [end - moment for moment, end in zip(moments, ends, strict=True)]


def made_up(rate: float, within: float, lag: float = 0.0) -> LoadFigures:
    return LoadFigures(
        concurrency=1,
        requests=100,
        errors=0,
        output_tokens=100,
        seconds=1.0,
        tokens_per_second=100.0,
        requests_per_second=rate,
        ttft_p50=0.1,
        ttft_p95=0.1,
        itl_p50=None,
        itl_p95=None,
        rate=rate,
        within=within,
        lag_p95=lag,
    )


@pytest.mark.parametrize("true", [2.0, 37.0, 700.0])
def test_the_highest_rate_is_found_from_below_and_from_above(true: float) -> None:
    def measure(rate: float) -> LoadFigures:
        return made_up(rate, 1.0 if rate <= true else 0.5)

    for first in (true / 2, true * 2):
        found, tried = highest_rate(measure, LIMITS, first, most_rates=12)
        assert found
        assert found.rate
        assert 0.95 * true <= found.rate <= true
        assert len(tried) <= 12


def test_where_no_rate_keeps_the_limits_none_is_found() -> None:
    found, tried = highest_rate(lambda rate: made_up(rate, 0.1), LIMITS, 8.0, most_rates=5)
    assert found is None
    assert [figures.rate for figures in tried] == [8.0, 4.0, 2.0, 1.0, 0.5]


def test_a_generator_that_is_late_itself_voids_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Unavailable, match="late itself"):
        highest_rate(lambda rate: made_up(rate, 1.0, lag=0.2), LIMITS, 8.0)
    # What it could send below that still holds.
    found, _ = highest_rate(
        lambda rate: made_up(rate, 1.0, lag=0.2 if rate > 10 else 0.0), LIMITS, 8.0
    )
    assert found
    assert found.rate
    assert 8 <= found.rate <= 10
    assert "requests/s do not count: the load generator was 0.2 s late itself" in caplog.text
