"""The load generator against servers of known law, and its decisions against simulated queues.

A server's services are drawn from a seed, and so are the arrivals: what a perfect generator would
have seen follows by Lindley's recursion (D. V. Lindley, The theory of queues with a single server,
Proc. Cambridge Phil. Soc. 48, 1952), request by request. `--quick` takes a quarter of the requests.
"""

import argparse
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.common import Figures, report
from benchmarks.law_server import services
from weighbridge.core.processes import Process, free_port
from weighbridge.serving.load import run_load
from weighbridge.serving.load_figures import LoadFigures, SpeedLimits
from weighbridge.serving.load_sender import Sender
from weighbridge.serving.open_loop import poisson, run_rate
from weighbridge.serving.openai_client import Payload
from weighbridge.serving.quantiles import decide, percentile
from weighbridge.serving.rate_search import highest_rate
from weighbridge.serving.steadiness import WARM_UP, WORTH, independent

SERVICE: Final = 0.1
"""Mean seconds of a service: so long that HTTP's own milliseconds do not count."""
LOADS: Final = (0.5, 0.8, 0.95)
LIMITS: Final = SpeedLimits(ttft=1.0)
PAYLOADS: Final[list[Payload]] = [
    {"prompt": f"question {number}", "max_tokens": 64} for number in range(120)
]
RUNS: Final = 1000
ROOT: Final = Path(__file__).resolve().parent.parent


@contextmanager
def law_server(*options: str, service: float = SERVICE) -> Iterator[str]:
    """Run a server of a known law in a process of its own; give its address."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.law_server", str(port), str(service), *options]
    with tempfile.TemporaryDirectory() as folder:
        process = Process("law server", command, log=Path(folder) / "log", cwd=ROOT)
        try:
            url = f"http://127.0.0.1:{port}"
            process.wait_until(lambda: _listens(url), 30)
            yield url
        finally:
            process.stop()


def _listens(url: str) -> bool:
    # Its first service is asked for by the benchmark, and by nobody before.
    import httpx

    try:
        return httpx.get(f"{url}/v1/models").is_success
    except httpx.TransportError:
        return False


def true_waits(rate: float, count: int, seed: int = 0, service_seed: int = 0) -> list[float]:
    """Return what a perfect generator sees of the times to the first token, warm-up left out."""
    free, waits = 0.0, []
    drawn = services(SERVICE, service_seed)
    for moment, service in itertools.islice(zip(poisson(rate, seed), drawn, strict=False), count):
        free = max(moment, free) + service
        waits.append(free - moment)
    return waits[round(WARM_UP * count) :]


def quantiles(figures: Figures, requests: int) -> None:
    """Compare percentiles at three loads with what they were."""
    for load in LOADS:
        rate = load / SERVICE
        with law_server() as url:
            seen = run_rate(Sender(url, "law", 60), PAYLOADS, rate, LIMITS, requests=requests)
        truth = sorted(true_waits(rate, seen.requests))
        for name, value, part in (("p50", seen.ttft_p50, 0.5), ("p95", seen.ttft_p95, 0.95)):
            true = percentile(truth, part) or math.nan
            error = abs((value or math.nan) / true - 1)
            figures.add(f"load_{load:g}_ttft_{name}_error", error, at_most=0.05)
        figures.add(f"load_{load:g}_lag_p95_ms", 1000 * (seen.lag_p95 or 0.0))


def rates(figures: Figures, requests: int) -> None:
    """Compare the highest rate with that which a perfect generator finds at the same arrivals."""

    def measured(rate: float) -> LoadFigures:
        # A fresh server each time: the same services from the first request on.
        with law_server() as url:
            return run_rate(Sender(url, "law", 60), PAYLOADS, rate, LIMITS, requests=requests)

    found, tried = highest_rate(measured, LIMITS, 0.5 / SERVICE)
    ratio = ((found.rate or 0.0) if found else 0.0) / _perfect_rate(requests, 0)
    figures.add("highest_rate_error", abs(ratio - 1), at_most=0.05)
    figures.add("highest_rate_runs", len(tried))
    # By the law: time in an M/M/1 queue is exponential with rate mu - lambda.
    law = 1 / SERVICE - math.log(1 / (1 - LIMITS.percentile)) / (LIMITS.ttft or math.nan)
    long = [_perfect_rate(4000, seed) for seed in range(20)]
    median = statistics.median(long)
    figures.add(
        "highest_rate_of_4000_requests_to_the_law_error", abs(median / law - 1), at_most=0.05
    )


def _perfect_rate(requests: int, seed: int) -> float:
    found, _ = highest_rate(lambda rate: simulated(rate, requests, seed), LIMITS, 0.5 / SERVICE)
    return (found.rate or 0.0) if found else 0.0


def simulated(rate: float, requests: int, seed: int = 0) -> LoadFigures:
    """Return what a perfect generator measures at a rate."""
    waits = true_waits(rate, requests, seed, seed)
    within = sum(1 for wait in waits if wait <= (LIMITS.ttft or 0.0)) / len(waits)
    return LoadFigures(
        concurrency=1,
        requests=requests,
        errors=0,
        output_tokens=0,
        seconds=1.0,
        tokens_per_second=0.0,
        requests_per_second=rate,
        ttft_p50=None,
        ttft_p95=None,
        itl_p50=None,
        itl_p95=None,
        rate=rate,
        within=within,
    )


def faults(figures: Figures) -> None:
    """Count hangs, and take the pace of answers that come in pieces of 8 tokens."""
    with law_server("--hang-every", "6", service=0.01) as url:
        seen = run_load(url, PAYLOADS[:60], 4, max_seconds=2, timeout=3)
        figures.add("hangs_lost", 4 - seen.errors - seen.unfinished, at_most=0)
        figures.add("hangs_p95_is_unknown", float(seen.ttft_p95 is None), at_least=1)
    with law_server("--tokens", "64", "--piece", "8", "--pace", "0.01", service=0.01) as url:
        seen = run_load(url, PAYLOADS[:24], 2)
    # The last piece begins 56 tokens after the first.
    figures.add("pieces_tpot_error", abs((seen.tpot_p50 or 0) / (0.56 / 63) - 1), at_most=0.05)
    figures.add("pieces_itl_error", abs((seen.itl_p50 or 0) / 0.08 - 1), at_most=0.05)
    figures.add("pieces_answer_tokens", seen.answer_tokens or 0.0, at_least=64, at_most=64)


def decisions(figures: Figures) -> None:
    """Count how often a limit is called met where exactly its part of all requests keep it."""
    drawn = np.random.default_rng(0)
    late = drawn.binomial(500, 0.05, RUNS)
    met = [decide((int(count),) * 2, 500, 0.95) == "met" for count in late]
    figures.add("met_at_the_limit_independent", float(np.mean(met)), at_most=0.01)
    for load, count in ((0.5, 400), (0.7, 1000), (0.9, 1000)):
        limit = math.log(20) / (1 - load)
        outcomes = [_queue_outcome(drawn, load, count, limit) for _ in range(RUNS)]
        plain, worth = (sum(column) / RUNS for column in zip(*outcomes, strict=True))
        figures.add(f"met_at_the_limit_queue_{load:g}", worth, at_most=0.01)
        figures.add(f"met_at_the_limit_queue_{load:g}_taken_as_independent", plain)


def _queue_outcome(
    drawn: np.random.Generator, load: float, count: int, limit: float
) -> tuple[bool, bool]:
    """Return whether a run of a queue that is exactly at its limit is called met: with requests
    taken as independent, and as many as they are worth.
    """
    skipped = round(WARM_UP * count)
    work, gaps = drawn.exponential(1.0, count), drawn.exponential(1 / load, count)
    walk = np.concatenate([[0.0], np.cumsum(work[:-1] - gaps[1:])])
    # The queue is in its steady state from the first request on.
    start = drawn.exponential(1 / (1 - load)) if drawn.random() < load else 0.0
    waits = walk - np.minimum(np.minimum.accumulate(walk), -start) + work
    measured = waits[skipped:]
    late = int((measured > limit).sum())
    worth = WORTH * independent(measured.tolist())
    share = worth / len(measured)
    overruns = math.floor(late * share), math.ceil(late * share)
    return (
        decide((late, late), len(measured), 0.95) == "met",
        decide(overruns, int(worth), 0.95) == "met",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts, or those that are named."""
    parser = argparse.ArgumentParser(description="The load generator against known laws.")
    parser.add_argument("--quick", action="store_true", help="a quarter of the requests")
    parser.add_argument("--only", choices=("quantiles", "rates", "faults", "decisions"))
    args = parser.parse_args(arguments)
    requests = 60 if args.quick else 240
    figures = Figures("load")
    parts: dict[str, Callable[[], None]] = {
        "decisions": lambda: decisions(figures),
        "faults": lambda: faults(figures),
        "quantiles": lambda: quantiles(figures, requests),
        "rates": lambda: rates(figures, requests),
    }
    for name, part in parts.items():
        if args.only in (None, name):
            print(name, file=sys.stderr, flush=True)
            part()
    report(figures)


if __name__ == "__main__":
    main()
