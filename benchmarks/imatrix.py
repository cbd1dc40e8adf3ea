"""How long an importance matrix takes on one thread and on two: of the demo's model, as stage
optimize has it made, and of a random one of 91M parameters, with the same program.

llama.cpp's own tools must be there: `weighbridge engines install llama_cpp --native`.

Usage: python -m benchmarks.imatrix [--only demo|random] [--rounds 3]
"""

import argparse
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Figures, alternate, report
from benchmarks.loads import demo_model
from benchmarks.random_gguf import Shape, write
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engines.llama_cpp import SPINS
from weighbridge.tasks.optimizers import gguf_conversion

SIDES = ("one", "two")
ROWS = 500
B_91M = Shape(hidden=768, layers=12, feed_forward=2048, heads=12, vocabulary=8192)
TOKENS = 6000
"""Every letter is one to a random model."""


def of_the_demo(workspace: Workspace) -> Callable[[str], float]:
    """Return what has llama-imatrix read the demo's training rows, and the seconds it took."""
    downloaded = demo_model(workspace)
    base = gguf_conversion.convert(downloaded.model, workspace)

    def turn(side: str) -> float:
        threads = SIDES.index(side) + 1
        gguf_conversion.cores = lambda: threads  # type: ignore[attr-defined]
        with workspace.store.scratch() as scratch:
            (scratch / "base.gguf").symlink_to(base.artifact.path / "model.gguf")
            started = time.perf_counter()
            gguf_conversion._calibrate(
                downloaded.model, downloaded.data, ROWS, scratch, workspace.settings.cache
            )
            return time.perf_counter() - started

    # The first one imports the tokenizer's library.
    turn("one")
    return turn


def of_a_random_model(workspace: Workspace) -> Callable[[str], float]:
    """Return the same of a model of 91M parameters in Q8_0, which reads letters."""
    program = llama_cpp_native.tool("llama-imatrix", workspace.settings.cache)
    assert program is not None, "run: weighbridge engines install llama_cpp --native"
    folder = workspace.settings.home
    model, text = write(folder / "random.gguf", B_91M), folder / "text.txt"
    draw = random.Random(0)
    text.write_text("".join(draw.choice("abcdefgh ") for _ in range(TOKENS)))

    def turn(side: str) -> float:
        command: list[str | Path] = [
            program,
            "-m",
            model,
            "-f",
            text,
            "-o",
            folder / "imatrix.gguf",
            "--no-ppl",
        ]
        command += ["-c", "512", "-b", "512", "-t", str(SIDES.index(side) + 1)]
        started = time.perf_counter()
        env = {**os.environ, "GOMP_SPINCOUNT": str(SPINS)}
        subprocess.run(command, check=True, capture_output=True, env=env)
        return time.perf_counter() - started

    return turn


SUBJECTS = {"demo": of_the_demo, "random": of_a_random_model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = Figures("imatrix")
    with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
        workspace = Workspace(Settings(home=Path(folder) / "home"))
        workspace.settings.home.mkdir()
        for name in [options.only] if options.only else SUBJECTS:
            turn = SUBJECTS[name](workspace)
            figures.add_many(f"{name}_seconds", alternate(SIDES, turn, options.rounds))
            figures.ratio(f"{name}_seconds", "one", "two")
    report(figures)


if __name__ == "__main__":
    main()
