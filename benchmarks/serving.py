"""What packaging costs: a served Bento against the bare engine, same command, same requests.

Three sides take turns within one run: the engine alone; the address that the target `local` serves,
where clients talk to the engine that BentoML watches; and the port of `bentoml serve`, where
everything passes through BentoML.

Usage: python -m benchmarks.serving [--rounds N] [--small] [--model GGUF …]
"""

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import Figures, alternate, report
from benchmarks.loads import LONG, SHORT, Payloads, by_side, demo_model, ttft_ms
from benchmarks.random_gguf import B_300M, write
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process, engine_process
from weighbridge.serving.engines.base import EngineArgs
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load import run_load
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.optimizers.gguf import Gguf, GgufArgs

SIDES = ("bare", "served", "bentoml")
CONCURRENCIES = (1, 4, 16)
GOAL = 0.95


@dataclass(frozen=True)
class Model:
    """One model to serve, and the length of a turn."""

    name: str
    gguf: Artifact
    requests: int = 16
    """Per stream and turn."""
    tokens: int = 64
    """Per answer."""
    prompt: str = LONG
    """After a number of its own."""
    threads: int = 1
    rounds: int = 5


@contextlib.contextmanager
def sides(model: Model, args: EngineArgs, workspace: Workspace) -> Iterator[dict[str, str]]:
    """Give the URL of every side, all up at once and all idle but the one whose turn it is."""
    logs = workspace.settings.home / "logs"
    contents = bento.Contents(model.name, "", model.name, args, model.gguf, {})
    built = bento.build(contents, workspace.settings.cache)
    exported = bento.export(built, model.gguf, workspace.store, {})
    with (
        engine_process.serve(
            model.gguf.path, args, workspace.settings.cache, logs / f"{model.name}-bare.log"
        ) as bare,
        bento_process.serve(
            exported.path, workspace.settings.cache, logs / f"{model.name}-bento.log", 600
        ) as proof,
    ):
        yield {"bare": bare.url, "served": proof.engine_url, "bentoml": proof.url}


def measure(model: Model, workspace: Workspace, figures: Figures) -> None:
    """Measure every concurrency, `model.rounds` turns of each side."""
    # Without a store of past prompts: it would cost the side more whose engine has seen more of
    # them.
    slots = max(CONCURRENCIES)
    options = {"threads": model.threads, "parallel": slots, "ctx_size": 512 * slots, "cache_ram": 0}
    args: EngineArgs = LlamaCppArgs.model_validate(options)
    payloads = Payloads(model.prompt, model.tokens)
    with sides(model, args, workspace) as urls:
        # The first requests allocate what later ones use.
        for url in urls.values():
            run_load(url, payloads.take(4), 1)
        for concurrency in CONCURRENCIES:

            def turn(side: str, streams: int = concurrency) -> LoadFigures:
                requests = payloads.take(max(4, model.requests * streams))
                return run_load(urls[side], requests, streams, max_seconds=600, timeout=600)

            turns = alternate(SIDES, turn, model.rounds)
            key = f"{model.name}_c{concurrency}"
            errors = {side: sum(load.errors for load in loads) for side, loads in turns.items()}
            figures.add_many(
                f"{key}_tokens_per_second", by_side(turns, lambda load: load.tokens_per_second)
            )
            figures.add_many(f"{key}_ttft_ms", by_side(turns, ttft_ms))
            for side in SIDES[1:]:
                # The goal is that of the address clients are given; what BentoML's own port costs
                # is told beside it.
                goal = GOAL if side == "served" else None
                figures.ratio(f"{key}_tokens_per_second", side, "bare", at_least=goal)
                figures.ratio(f"{key}_ttft_ms", "bare", side, at_least=goal)
                figures.add(f"{key}_errors_{side}", errors[side], at_most=0)


def models(given: list[Path], small: bool, workspace: Workspace) -> Iterator[Model]:
    for path in given:
        with workspace.store.scratch() as scratch:
            (scratch / "model.gguf").symlink_to(path.absolute())
            yield Model(path.stem.lower(), workspace.store.add(scratch, "gguf", adopt=False))
    with workspace.store.scratch() as scratch:
        if small:
            write(scratch / "model.gguf")
            yield Model("tiny", workspace.store.add(scratch, "gguf"))
        else:
            write(scratch / "model.gguf", B_300M)
            # Its tokenizer takes every letter for a token, and a thread reads about 100 of them a
            # second.
            yield Model(
                "random-300m",
                workspace.store.add(scratch, "gguf"),
                2,
                16,
                SHORT,
                threads=2,
                rounds=3,
            )


def demo(workspace: Workspace) -> list[Path]:
    """Make the demo's base model as Q8_0, through the stages that the demo itself uses."""
    downloaded = demo_model(workspace)
    plugin = Gguf()
    out = workspace.settings.home / "demo"
    out.mkdir(parents=True)
    plugin.optimize(
        downloaded.model, downloaded.data, GgufArgs(quantization="Q8_0"), out, workspace
    )
    return [next(out.glob("*.gguf")).rename(out / "demo.gguf")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="turns of each side, whatever the model")
    parser.add_argument(
        "--small", action="store_true", help="a tiny random model alone: does the benchmark work?"
    )
    parser.add_argument(
        "--model", type=Path, action="append", help="GGUF files instead of the demo's model"
    )
    options = parser.parse_args()
    figures = Figures("serving")
    with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
        os.environ["BENTOML_HOME"] = f"{folder}/bentoml"
        workspace = Workspace(Settings(home=Path(folder) / "home"))
        given = options.model or ([] if options.small else demo(workspace))
        for model in models(given, options.small, workspace):
            measure(replace(model, rounds=options.rounds or model.rounds), workspace, figures)
    report(figures)


if __name__ == "__main__":
    main()
