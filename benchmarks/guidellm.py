"""Our load generator against guidellm: the same endpoint, prompts and arrivals, taking turns.

Two endpoints: a server of a known law, which is started anew for each turn and so draws the same
services for both, and llama.cpp with a random model of 28M parameters: with one of 2.5M, of which
a token takes 0.4 ms, it is measured who leaves more of two cores to the server. guidellm runs in an
environment of its own. Which of its figures stands beside which of ours:

- requests/s and tokens/s: its `requests_per_second` and `output_tokens_per_second`, mean.
- TTFT: its `time_to_first_token_ms`. It counts from when a request was sent, ours from when it was
  to be sent: the same while the generators are in time.
- TPOT: its `inter_token_latency_ms`, (last - first) / (tokens - 1), and not its
  `time_per_output_token_ms`, which includes the first token.

Both leave a warm-up out: of a closed loop as many requests as there are streams, of an open one the
first fifth. At half of the capacity guidellm replays the moments that ours draws as a Poisson
process: the two then differ by themselves, and not by what they drew.

Usage: python -m benchmarks.guidellm [--rounds N] [--requests N] [--only law|llama_cpp] [--quick]
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figures, alternate, report
from benchmarks.load import law_server
from benchmarks.loads import SHORT
from benchmarks.random_gguf import B_28M, SMALL, write
from weighbridge.core.environments import ensure
from weighbridge.core.processes import run
from weighbridge.core.settings import Settings
from weighbridge.serving import engine_process
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load import run_load
from weighbridge.serving.load_figures import LoadFigures, SpeedLimits
from weighbridge.serving.load_sender import Sender
from weighbridge.serving.open_loop import poisson, run_rate
from weighbridge.serving.openai_client import Client, Payload
from weighbridge.serving.steadiness import WARM_UP

SIDES: Final = ("ours", "guidellm")
STREAMS: Final = (1, 4, 8)
TOKENS: Final = 32
"""Of an answer."""
SERVICE: Final = 0.05
"""Mean seconds of a service of the law server, so long that HTTP's milliseconds do not count."""
PACE: Final = 0.003
"""Seconds per token of the law server."""
PATIENT: Final = SpeedLimits(ttft=600)
"""No run is ended early by it."""
TIMEOUT: Final = 600.0
QUICK: Final = (1, 40)
"""Rounds, and requests of a turn."""
POISSON: Final = "poisson"
LEAD: Final = 3.0
"""Seconds before the first arrival, in which guidellm's own process begins to send: else the first
second's requests come late and all at once.
"""
SEED: Final = 0
"""Of the arrivals."""

AT_MEDIAN: Final = 0.05
"""Part by which the two may differ in a median or a rate."""
AT_P95: Final = 0.1

Endpoint = Callable[[], AbstractContextManager[str]]
"""Serves for one turn, at the address that it gives."""


@dataclass(frozen=True)
class Load:
    """What both send in one turn: so many streams, or requests per second."""

    name: str
    prompts: Sequence[str]
    streams: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class Seen:
    """What one side saw in one turn; times in seconds."""

    requests_per_second: float
    tokens_per_second: float
    ttft_p50: float
    ttft_p95: float
    tpot_p50: float
    tpot_p95: float
    errors: int
    lag_p95: float = 0.0
    """How late the generator itself was, at a rate."""


def ours(url: str, load: Load) -> Seen:
    """Measure by our own generator."""
    payloads: list[Payload] = [
        {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True} for prompt in load.prompts
    ]
    if load.streams:
        figures = run_load(url, payloads, load.streams, max_seconds=TIMEOUT, timeout=TIMEOUT)
    else:
        sender = Sender(url, Client(url).model, TIMEOUT)
        count = len(payloads)
        figures = run_rate(sender, payloads, load.rate, PATIENT, requests=count, seed=SEED)
    return _seen(figures)


def _seen(figures: LoadFigures) -> Seen:
    return Seen(
        requests_per_second=figures.requests_per_second,
        tokens_per_second=figures.tokens_per_second,
        ttft_p50=_known(figures.ttft_p50),
        ttft_p95=_known(figures.ttft_p95),
        tpot_p50=_known(figures.tpot_p50),
        tpot_p95=_known(figures.tpot_p95),
        errors=figures.errors + figures.unfinished,
        lag_p95=figures.lag_p95 or 0.0,
    )


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def guidellm(program: Path, url: str, load: Load) -> Seen:
    """Measure by guidellm."""
    with tempfile.TemporaryDirectory(prefix="guidellm-") as folder:
        rows, output = Path(folder) / "rows.jsonl", Path(folder) / "figures.json"
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in _rows(load)))
        model = Client(url).model
        backend = f"kind=openai_http,target={url},model={model},request_format=/v1/completions"
        command: list[str | Path] = [program, "run", "--backend", backend]
        command += ["--profile", _profile(load), "--data", f"kind=json_file,path={rows}"]
        command += ["--constraint", f"kind=max_requests,count={len(load.prompts)}"]
        command += ["--output", f"kind=json,path={output}", "--disable-console"]
        # Of one process, as ours: by default it starts ten, and this machine has other work.
        settings = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
        finished = run("guidellm", command, env=settings, cwd=Path(folder))
        if finished.status != 0:
            raise SystemExit(f"guidellm ended with {finished.status}: {finished.tail()}")
        return read(json.loads(output.read_text()))


def _rows(load: Load) -> Iterator[dict[str, object]]:
    moments = poisson(load.rate, SEED) if load.rate else itertools.repeat(0.0)
    for prompt, moment in zip(load.prompts, moments, strict=False):
        yield {"prompt": prompt, "output_tokens_count": TOKENS, "relative_timestamp": moment}


def _profile(load: Load) -> str:
    if load.streams:
        # Ours ends its span where nothing new is sent: the last ones are on their way then.
        edge = f"warmup={load.streams},cooldown={load.streams}"
        return f"kind=concurrent,streams={load.streams},{edge}"
    return f"kind=replay,schedule_turn=timestamp,warmup={round(WARM_UP * len(load.prompts))}"


def read(told: dict[str, Any]) -> Seen:
    """Return what guidellm's output tells, in seconds."""
    (benchmark,) = told["benchmarks"]
    metrics = {name: of["successful"] for name, of in benchmark["metrics"].items() if _is_split(of)}
    # A closed loop has none: there is no moment at which a request was to be sent.
    late = metrics.get("request_dispatch_delay", {}).get("percentiles", {})
    ttft, tpot = metrics["time_to_first_token_ms"], metrics["inter_token_latency_ms"]
    made = benchmark["scheduler_metrics"]["requests_made"]
    return Seen(
        requests_per_second=metrics["requests_per_second"]["mean"],
        tokens_per_second=metrics["output_tokens_per_second"]["mean"],
        ttft_p50=ttft["percentiles"]["p50"] / 1000,
        ttft_p95=ttft["percentiles"]["p95"] / 1000,
        tpot_p50=tpot["percentiles"]["p50"] / 1000,
        tpot_p95=tpot["percentiles"]["p95"] / 1000,
        errors=made["errored"] + made["incomplete"],
        lag_p95=late.get("p95", 0.0),
    )


def _is_split(metric: object) -> bool:
    """Whether it tells of answered and failed requests apart."""
    return isinstance(metric, dict) and isinstance(metric.get("successful"), dict)


def compare(
    name: str, endpoint: Endpoint, program: Path, args: argparse.Namespace, figures: Figures
) -> None:
    """Measure one endpoint under every load, and hold the two sides against each other."""
    capacity = 0.0

    def turns_under(load: Load) -> dict[str, list[Seen]]:
        def turn(side: str) -> Seen:
            with endpoint() as url:
                return ours(url, load) if side == "ours" else guidellm(program, url, load)

        print(f"{name}, {load.name}", file=sys.stderr, flush=True)
        turns = alternate(SIDES, turn, args.rounds)
        _hold(f"{name}_{load.name}", turns, figures)
        return turns

    for streams in STREAMS:
        load = Load(f"c{streams}", _prompts(streams, args.requests), streams=streams)
        seen = turns_under(load)["ours"]
        capacity = max(capacity, statistics.median(one.requests_per_second for one in seen))
    turns_under(Load(POISSON, _prompts(0, args.requests), rate=capacity / 2))


def _prompts(first: int, count: int) -> list[str]:
    return [f"{first * 10_000 + number} {SHORT}" for number in range(count)]


def _hold(key: str, turns: dict[str, list[Seen]], figures: Figures) -> None:
    compared = {field.name for field in fields(Seen)} - {"errors", "lag_p95"}
    for name in (field.name for field in fields(Seen) if field.name in compared):
        values = {side: [getattr(seen, name) for seen in of] for side, of in turns.items()}
        figures.add_many(f"{key}_{name}", values)
        most = AT_P95 if name.endswith("p95") else AT_MEDIAN
        figures.ratio(f"{key}_{name}", *SIDES, at_least=1 - most, at_most=1 + most)
    for side, of in turns.items():
        figures.add(f"{key}_errors_{side}", sum(seen.errors for seen in of), at_most=0)
        if key.endswith(POISSON):
            figures.add(f"{key}_lag_p95_{side}", [seen.lag_p95 for seen in of])


def law() -> AbstractContextManager[str]:
    """Serve by a known law, from its first service on."""
    return law_server("--tokens", str(TOKENS), "--pace", str(PACE), service=SERVICE)


@contextmanager
def llama_cpp(quick: bool) -> Iterator[Endpoint]:
    """Serve a random model for all turns; no prompt is kept."""
    with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
        model = Path(folder) / "model"
        model.mkdir()
        write(model / "model.gguf", SMALL if quick else B_28M)
        slots = max(STREAMS)
        args = LlamaCppArgs(
            threads=1, parallel=slots, ctx_size=512 * slots, cache_ram=0, cache_prompt=False
        )
        log = Path(folder) / "log"
        with engine_process.serve(model, args, Settings().cache, log) as running:
            # The first requests allocate what later ones use.
            ours(running.url, Load("warm-up", _prompts(99, 16), streams=slots))
            yield lambda: nullcontext(running.url)


def main() -> None:
    """Compare at both endpoints, or at one of them."""
    parser = argparse.ArgumentParser(description="Our load generator against guidellm.")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (%(default)s)")
    parser.add_argument("--requests", type=int, default=240, help="of a turn (%(default)s)")
    parser.add_argument("--only", choices=("law", "llama_cpp"))
    parser.add_argument(
        "--quick", action="store_true", help="one short round, a tiny model: does it work?"
    )
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests = QUICK
    program = ensure(Path(__file__).with_suffix(".lock"), Settings().cache).bin("guidellm")
    figures = Figures("guidellm")
    figures.add("load_of_the_machine_before", os.getloadavg()[0])
    with ExitStack() as stack:
        if args.only != "llama_cpp":
            compare("law", law, program, args, figures)
        if args.only != "law":
            endpoint = stack.enter_context(llama_cpp(args.quick))
            compare("llama_cpp", endpoint, program, args, figures)
    report(figures)


if __name__ == "__main__":
    main()
