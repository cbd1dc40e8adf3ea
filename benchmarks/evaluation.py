"""How long an evaluation takes: the same prompts through the engine, and through transformers one
by one and batched.

Usage: python -m benchmarks.evaluation [--prompts 500] [--rounds 3] [--streams 8]
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import Figures, alternate, report
from benchmarks.loads import demo_model
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import engine_process
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.openai_client import Client
from weighbridge.tasks.data import Row, read_rows
from weighbridge.tasks.optimizers.gguf import Gguf, GgufArgs

TOKENS = 32
BATCH = 64
SIDES = ("engine", "one_by_one", "batched")


@dataclass
class Subject:
    """One model in both of its forms, the rows to ask it, and the last answers of every side."""

    weights: Artifact
    gguf: Path
    rows: Sequence[Row]
    answers: dict[str, list[str]] = field(default_factory=dict)


def subject(workspace: Workspace, prompts: int) -> Subject:
    """Return the demo's base model, and its GGUF of the same precision through the optimizer."""
    downloaded = demo_model(workspace)
    plugin = Gguf()
    out = workspace.settings.home / "gguf"
    out.mkdir(parents=True)
    plugin.optimize(downloaded.model, downloaded.data, GgufArgs(quantization="F16"), out, workspace)
    return Subject(downloaded.model, out, read_rows(downloaded.data, "train")[:prompts])


def through_engine(about: Subject, url: str, streams: int) -> list[str]:
    client = Client(url)

    def ask(row: Row) -> str:
        return client.ask([message.model_dump() for message in row.prompt], max_tokens=TOKENS).text  # type: ignore[union-attr]

    with ThreadPoolExecutor(streams) as pool:
        return list(pool.map(ask, about.rows))


def through_transformers(about: Subject) -> Callable[[int], list[str]]:
    """Load the model once and return a function that takes the batch size."""
    from weighbridge.tasks import generation, hf_models
    from weighbridge.tasks.answer_end import tokens_that_stop
    from weighbridge.tasks.encoding import encode, load_tokenizer

    tokenizer = load_tokenizer(about.weights.path)
    stops = tokens_that_stop(about.weights.path, tokenizer)
    prompts = [row.prompt for row in encode(tokenizer, about.rows)]
    with hf_models.quiet():
        model = hf_models.load_model(about.weights.path)

    def answer(batch: int) -> list[str]:
        with hf_models.quiet(), hf_models.threads(about.weights.path):
            return generation.answers(
                model, tokenizer, prompts, stops=stops, max_new_tokens=TOKENS, batch_size=batch
            )

    return answer


def measure(
    about: Subject, workspace: Workspace, rounds: int, streams: int, figures: Figures
) -> None:
    """Measure every side in turn, and how many of the answers are the same."""
    args = LlamaCppArgs(threads=1, parallel=streams)
    log = workspace.settings.home / "logs" / "engine.log"
    transformer = through_transformers(about)
    with engine_process.serve(about.gguf, args, workspace.settings.cache, log) as running:
        ways: dict[str, Callable[[], list[str]]] = {
            "engine": lambda: through_engine(about, running.url, streams),
            "one_by_one": lambda: transformer(1),
            "batched": lambda: transformer(BATCH),
        }

        def turn(side: str) -> float:
            started = time.perf_counter()
            about.answers[side] = ways[side]()
            return time.perf_counter() - started

        turns = alternate(SIDES, turn, rounds)
    figures.add_many("seconds", turns)
    for side in SIDES[1:]:
        figures.ratio("seconds", side, "engine")
        same = sum(
            a == b for a, b in zip(about.answers["engine"], about.answers[side], strict=True)
        )
        figures.add(f"same_answers_engine_and_{side}", same / len(about.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    figures = Figures("evaluation")
    with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
        workspace = Workspace(Settings(home=Path(folder) / "home"))
        measure(
            subject(workspace, options.prompts), workspace, options.rounds, options.streams, figures
        )
    report(figures)


if __name__ == "__main__":
    main()
