"""Every engine that runs here, on the same model and requests: speed, memory, start, in one run.

An engine takes part when it is registered, its environment is installed and an optimizer makes a
format that it takes; who is left out is named, and why. Its sides take turns:

    bare        its own server, started by hand with nothing but model and address
    launched    the same engine through `weighbridge.serving.engine_process`, options at their
                defaults
    measured    with the options that the benchmark of a candidate finds best on this machine

Beside them stand the figures of `transformers`, the reference, where that engine takes part.

Usage: python -m benchmarks.engines [--quick] [--rounds N] [--engine NAME …] [--install]
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import Figures, alternate, report
from benchmarks.loads import LONG, Payloads, by_side, demo_model, ttft_ms
from weighbridge.core import plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure, locate
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.processes import PeakMemory, Process, free_port
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import engine_process
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_class
from weighbridge.serving.load import run_load
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.serving.openai_client import Client, RequestRefused, is_ready
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.optimize import OptimizeArgs, optimize
from weighbridge.tasks.upgrade_contracts import optimizer_for
from weighbridge.tasks.weigh_args import WeighArgs

REFERENCE = "transformers"
GOAL = 0.97
CONCURRENCIES = (1, 4, 16)
PLENTY = 1000
"""Requests that no engine answers in one turn."""
LLAMA_CPP = """
import signal, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], [sys.argv[2]], int(sys.argv[3])
server = xllamacpp.Server(params)
signal.pause()
"""


@dataclass(frozen=True)
class Bare:
    """An engine's own server, as somebody starts it who knows nothing of us."""

    command: Callable[[Path, str, str, Path], list[str]]
    """Out of the model's folder, host, port and the environment's Python."""
    needs_env: bool = False
    """Whether it does not start without the variables that we set; else it gets none of them."""


BARE: Mapping[str, Bare] = {
    "llama_cpp": Bare(
        lambda model, host, port, python: [
            str(python),
            "-I",
            "-c",
            LLAMA_CPP,
            str(model / "model.gguf"),
            host,
            port,
        ]
    ),
    "vllm": Bare(
        lambda model, host, port, python: [
            str(python),
            "-I",
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(model),
            "--host",
            host,
            "--port",
            port,
        ],
        needs_env=True,
    ),
}
"""Engines that come with a server of their own. For the others our server is the only one there is.
"""


@dataclass(frozen=True)
class Plan:
    """How long it goes on."""

    rounds: int = 5
    concurrencies: Sequence[int] = CONCURRENCIES
    seconds: float = 3.0
    """A turn goes on at least so long, and until every stream has had two answers."""
    tokens: int = 64


@dataclass(frozen=True)
class Entrant:
    """One engine, and what it serves."""

    engine: type[Engine]
    variant: Variant
    measured: EngineArgs

    @property
    def name(self) -> str:
        return self.engine.name


@dataclass(frozen=True)
class Side:
    """A server that has answered."""

    url: str
    process: Process
    start_seconds: float


def entrants(
    names: Sequence[str], plan: Plan, install: bool, workspace: Workspace
) -> Iterator[Entrant]:
    """Yield every engine that can take part; the others are named on standard error."""
    downloaded = demo_model(workspace)
    for name in names or plugins.names("engine"):
        engine = engine_class(name)
        try:
            _require(engine, install, workspace)
            optimizer = optimizer_for(engine)
            args = OptimizeArgs(variants=[optimizer.Args.model_validate({})])
            (variant,) = optimize(downloaded.model, downloaded.data, args, workspace).variants
            yield Entrant(
                engine, variant, _measured(engine, variant, downloaded.data, plan, workspace)
            )
        except (WeighbridgeError, LookupError) as exc:
            print(f"left out: {name}: {exc}", file=sys.stderr, flush=True)


def _require(engine: type[Engine], install: bool, workspace: Workspace) -> None:
    """Raise LookupError where an engine's environment is not installed, WeighbridgeError where it
    has none for this machine.
    """
    lock, cache = engine(engine.Args(kind=engine.name)).lock(), workspace.settings.cache
    if install:
        ensure(lock, cache)
    elif not locate(lock, cache)[1]:
        raise LookupError(
            "its environment is not installed: weighbridge engines install, or --install here"
        )


def _measured(
    engine: type[Engine], variant: Variant, data: Artifact, plan: Plan, workspace: Workspace
) -> EngineArgs:
    """Return the options that the benchmark of a candidate finds best, as in a weighing."""
    args = engine.Args(kind=engine.name)
    weigh_args = WeighArgs(
        engines=[args], concurrency=list(plan.concurrencies), max_tokens=plan.tokens
    )
    candidate = Candidate(label=f"{engine.name}/{variant.label}", variant=variant, engine=args)
    benchmark = CandidateBenchmark(
        candidate,
        data,
        EvaluateArgs.model_validate({"metrics": [{"kind": "exact_match"}]}),
        weigh_args,
        "",
        workspace,
    )
    payloads = [_payload(row.prompt, plan.tokens) for row in read_rows(data, "train")]
    with benchmark.tuned(payloads) as (_, tuned):
        return tuned


def _payload(prompt: object, tokens: int) -> dict[str, object]:
    messages = [message.model_dump() for message in prompt] if isinstance(prompt, list) else prompt
    return {"messages": messages, "max_tokens": tokens, "temperature": 0}


@contextlib.contextmanager
def bare(entrant: Entrant, workspace: Workspace) -> Iterator[Side]:
    """Start the engine's own server, with nothing but model and address."""
    server, engine = BARE[entrant.name], entrant.engine(entrant.engine.Args(kind=entrant.name))
    python, port = (ensure(engine.lock(), workspace.settings.cache).python, free_port())
    command = server.command(entrant.variant.artifact.path, engine_process.HOST, str(port), python)
    env = engine.env() if server.needs_env else {}
    log, url = (
        workspace.settings.home / "logs" / f"{entrant.name}-bare.log",
        f"http://{engine_process.HOST}:{port}",
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Process("bare", command, log=log, cwd=Path(folder), env=env) as process,
    ):
        yield Side(
            url,
            process,
            process.wait_until(lambda: is_ready(url), engine.args.start_timeout, poll=0.05),
        )


@contextlib.contextmanager
def ours(entrant: Entrant, args: EngineArgs, side: str, workspace: Workspace) -> Iterator[Side]:
    log = workspace.settings.home / "logs" / f"{entrant.name}-{side}.log"
    with engine_process.serve(
        entrant.variant.artifact.path, args, workspace.settings.cache, log
    ) as running:
        yield Side(running.url, running.process, running.load_seconds)


@contextlib.contextmanager
def sides(entrant: Entrant, workspace: Workspace) -> Iterator[dict[str, Side]]:
    """Give every side of one engine, all up at once and all idle but the one whose turn it is."""
    defaults = entrant.engine.Args(kind=entrant.name)
    with contextlib.ExitStack() as stack:
        up = {}
        if entrant.name in BARE:
            up["bare"] = stack.enter_context(bare(entrant, workspace))
        up["launched"] = stack.enter_context(ours(entrant, defaults, "launched", workspace))
        up["measured"] = stack.enter_context(ours(entrant, entrant.measured, "measured", workspace))
        yield up


def measure(entrant: Entrant, plan: Plan, workspace: Workspace, figures: Figures) -> None:
    """Measure every concurrency, `plan.rounds` turns of each side."""
    print(
        f"{entrant.name}: {entrant.variant.label}, measured: {entrant.measured!r}",
        file=sys.stderr,
        flush=True,
    )
    with sides(entrant, workspace) as up, contextlib.ExitStack() as watched:
        peaks = {
            name: watched.enter_context(PeakMemory(side.process.pid)) for name, side in up.items()
        }
        payloads = _payloads(next(iter(up.values())).url, plan)
        # The first requests allocate, and compile, what later ones use.
        for side in up.values():
            run_load(side.url, payloads.take(4), 1, timeout=600)
        for concurrency in plan.concurrencies:

            def turn(side: str, streams: int = concurrency) -> LoadFigures:
                return run_load(
                    up[side].url,
                    payloads.take(PLENTY),
                    streams,
                    requests=2 * streams,
                    seconds=plan.seconds,
                    max_seconds=600,
                    timeout=600,
                )

            _add(figures, f"{entrant.name}_c{concurrency}", alternate(list(up), turn, plan.rounds))
    for name, side in up.items():
        figures.add(f"{entrant.name}_memory_mib_{name}", peaks[name].bytes / 2**20)
        figures.add(f"{entrant.name}_start_seconds_{name}", side.start_seconds)


def _payloads(url: str, plan: Plan) -> Payloads:
    """Return requests for answers of full length, where the server has an option for that."""
    payloads = Payloads(LONG, plan.tokens)
    (probe,) = payloads.take(1)
    options = {
        key: value
        for key, value in probe.items()
        if key not in ("messages", "stream_options", "max_tokens")
    }
    try:
        Client(url, 600).ask([{"role": "user", "content": "Hi"}], max_tokens=2, **options)
    except RequestRefused:
        return Payloads(LONG, plan.tokens, {})
    return payloads


def _add(figures: Figures, key: str, turns: dict[str, list[LoadFigures]]) -> None:
    figures.add_many(
        f"{key}_tokens_per_second", by_side(turns, lambda load: load.tokens_per_second)
    )
    figures.add_many(f"{key}_ttft_ms", by_side(turns, ttft_ms))
    figures.add(
        f"{key}_errors", sum(load.errors for loads in turns.values() for load in loads), at_most=0
    )
    if "bare" in turns:
        figures.ratio(f"{key}_tokens_per_second", "launched", "bare", at_least=GOAL)
        figures.ratio(f"{key}_tokens_per_second", "measured", "bare")
        figures.ratio(f"{key}_ttft_ms", "bare", "measured")
    else:
        figures.ratio(f"{key}_tokens_per_second", "measured", "launched")


def against_reference(figures: Figures, names: Sequence[str], concurrencies: Sequence[int]) -> None:
    """Add tokens per second over the reference's, medians of the same run; nothing where the
    reference took no part.
    """
    for concurrency in concurrencies if REFERENCE in names else ():
        reference = figures.values[f"{REFERENCE}_c{concurrency}_tokens_per_second_measured"]
        for name in names:
            own = figures.values[f"{name}_c{concurrency}_tokens_per_second_measured"]
            if name != REFERENCE:
                figures.add(f"{name}_c{concurrency}_to_{REFERENCE}", own / reference)


def beats(figures: Figures, names: Sequence[str], concurrencies: Sequence[int]) -> None:
    """Add measured options against the defaults: the geometric mean over the concurrencies, by
    which they are chosen.
    """
    for name in names:
        side = "bare" if name in BARE else "launched"
        keys = [
            f"{name}_c{concurrency}_tokens_per_second_measured_to_{side}"
            for concurrency in concurrencies
        ]
        figures.add(
            f"{name}_measured_to_{side}",
            statistics.geometric_mean([figures.values[key] for key in keys]),
            at_least=GOAL,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round, concurrency 1 and 4: does it work?"
    )
    parser.add_argument("--rounds", type=int, help="turns of each side")
    parser.add_argument("--engine", action="append", default=[], help="these alone")
    parser.add_argument(
        "--install", action="store_true", help="build the environments that are missing"
    )
    options = parser.parse_args()
    plan = Plan(rounds=1, concurrencies=(1, 4), seconds=0.5, tokens=32) if options.quick else Plan()
    plan = Plan(options.rounds or plan.rounds, plan.concurrencies, plan.seconds, plan.tokens)
    figures, names = Figures("engines"), []
    with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
        workspace = Workspace(Settings(home=Path(folder) / "home"))
        for entrant in entrants(options.engine, plan, options.install, workspace):
            try:
                measure(entrant, plan, workspace, figures)
            except WeighbridgeError as exc:
                print(f"left out: {entrant.name}: {exc}", file=sys.stderr, flush=True)
            else:
                names.append(entrant.name)
    if not names:
        sys.exit(
            "error: measuring engines: none can take part; "
            "run: weighbridge engines install llama_cpp"
        )
    against_reference(figures, names, plan.concurrencies)
    beats(figures, names, plan.concurrencies)
    report(figures)


if __name__ == "__main__":
    main()
