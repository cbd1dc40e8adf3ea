"""Record the grids that `benchmarks.search` replays, on llama.cpp with small models.

`record` visits a random part of a grid's settings, once per round in an order of its own, and adds
to `grids/<name>.visits.jsonl` in the workspace. `fill` makes the whole grid of that: the additive
model with pairs is fitted to what was recorded; recorded points keep what the model believes of
them, the others get what it predicts and a seeded remainder of a few per cent, so that no point
lies where the model would have it. Pairs of values that failed at every visit fail. The noise is
that of settings which were visited several times.

Usage: python -m benchmarks.record_grids record|fill NAME [--settings N] [--rounds N]
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.loads import LONG, Payloads, demo_model
from benchmarks.random_gguf import B_28M, write
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load import run_load
from weighbridge.tasks.optimize import OptimizeArgs, optimize
from weighbridge.tasks.search.feasibility import Feasibility
from weighbridge.tasks.search.space import CANDIDATE, Branch, Setting, key_of, space_of
from weighbridge.tasks.search.speed_model import SpeedModel
from weighbridge.tasks.search.visits import Failure, GridPoint, Visit, read_grid, write_grid

GRIDS: Final = Path(__file__).with_name("grids")
SECONDS: Final = 0.6
REMAINDER: Final = 0.03
"""Standard deviation of what a setting has by itself, beyond options and pairs of them."""
CORES: Final = 2
"""Of the machine that records: with more threads than these, runs differ more."""


@dataclass(frozen=True)
class Grid:
    """What is measured over which space."""

    models: Sequence[str]
    levels: Sequence[int]
    prompt: str
    tokens: int
    figure: str
    options: Mapping[str, Sequence[Any]]
    context: int = 512
    """Of one slot."""


SPECS: Final = {
    "demo-chat": Grid(
        ("F16", "Q8_0", "Q4_0"),
        (1, 8),
        LONG,
        32,
        "tokens_per_second",
        {
            "threads": [1, 2, 4],
            "parallel": [2, 4, 8],
            "ubatch_size": [512, 64],
            "flash_attn": ["on", "off"],
            "cache_type_v": ["f16", "q8_0"],
        },
    ),
    "random-chat": Grid(
        ("random",),
        (1, 4),
        "is late, why?",
        12,
        "tokens_per_second",
        {
            "threads": [1, 2, 3],
            "parallel": [1, 2, 4],
            "ubatch_size": [512, 128, 32],
            "flash_attn": ["on", "off"],
            "cache_type_k": ["f16", "q8_0"],
            "cache_type_v": ["f16", "q8_0"],
        },
    ),
    "demo-classify": Grid(
        ("Q8_0", "Q4_0"),
        (1, 16),
        LONG * 3,
        3,
        "requests_per_second",
        {
            "threads": [1, 2],
            "threads_batch": [1, 2, 4],
            "parallel": [4, 16],
            "ubatch_size": [512, 128, 32],
            "flash_attn": ["on", "off"],
            "cache_type_v": ["f16", "q8_0"],
        },
        768,
    ),
}


def settings_of(grid: Grid) -> list[Setting]:
    """Return every setting; llama-server's defaults first."""
    space = space_of([Branch(model, grid.options) for model in grid.models])
    return list(space.settings)


def folders(grid: Grid, workspace: Workspace) -> dict[str, Path]:
    """Return the folder with `model.gguf` of every model."""
    if grid.models == ("random",):
        folder = workspace.settings.home / "random"
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "model.gguf", B_28M)
        return {"random": folder}
    downloaded = demo_model(workspace)
    variants = [{"kind": "gguf", "quantization": name} for name in grid.models]
    args = OptimizeArgs.model_validate({"variants": variants})
    made = optimize(downloaded.model, downloaded.data, args, workspace).variants
    return {name: variant.artifact.path for name, variant in zip(grid.models, made, strict=True)}


def visit(
    grid: Grid, setting: Setting, folder: Path, payloads: Payloads, workspace: Workspace
) -> Visit:
    """Start llama-server under a setting and load it at every level."""
    options = {name: value for name, value in setting.items() if name != CANDIDATE}
    args = LlamaCppArgs(ctx_size=options["parallel"] * grid.context, kv_unified=False, **options)
    log = workspace.settings.home / "logs" / "grid.log"
    log.unlink(missing_ok=True)
    began = time.monotonic()
    try:
        with serve(folder, args, workspace.settings.cache, log) as running:
            started = time.monotonic() - began
            speeds = [
                getattr(
                    run_load(running.url, payloads.take(400), level, requests=1, seconds=SECONDS),
                    grid.figure,
                )
                for level in grid.levels
            ]
    except WeighbridgeError as exc:
        return Visit(
            setting=dict(setting),
            start_seconds=time.monotonic() - began,
            failure=Failure(phase="start", why=exc.wrong.splitlines()[-1][-200:]),
        )
    return Visit(
        setting=dict(setting),
        start_seconds=round(started, 3),
        run_seconds=round(time.monotonic() - began - started, 3),
        repeats=[[round(speed, 2) for speed in speeds]],
    )


def record(name: str, count: int, rounds: int, workspace: Workspace) -> None:
    """Visit `count` settings, `rounds` times each."""
    grid, found = SPECS[name], workspace.settings.home / "grids" / f"{name}.visits.jsonl"
    made, payloads = folders(grid, workspace), Payloads(grid.prompt, grid.tokens)
    generator = random.Random(7)
    chosen = generator.sample(settings_of(grid), count)
    found.parent.mkdir(parents=True, exist_ok=True)
    with found.open("a") as stream:
        for number in range(rounds):
            for setting in generator.sample(chosen, count):
                one = visit(grid, setting, made[setting[CANDIDATE]], payloads, workspace)
                # A machine that is too busy for a single answer has told nothing.
                if all(speed > 0 for levels in one.repeats for speed in levels):
                    stream.write(one.model_dump_json(exclude_defaults=True) + "\n")
                    stream.flush()
            print(f"round {number + 1} of {rounds} of {name}", file=sys.stderr, flush=True)


def fill(name: str, visits: Sequence[Visit]) -> list[GridPoint]:
    """Return the whole grid, out of what was recorded of it."""
    settings = settings_of(SPECS[name])
    space = space_of([Branch(model, SPECS[name].options) for model in SPECS[name].models])
    numbers = {key_of(setting): number for number, setting in enumerate(settings)}
    worked = [one for one in visits if one.failure is None]
    failed = [one for one in visits if one.failure is not None]
    at = np.array([numbers[key_of(one.setting)] for one in worked])
    model = SpeedModel(space.codes())
    speeds = _predicted(model, at, np.array([np.mean(one.log_speeds()) for one in worked]))
    runs = _predicted(model, at, np.array([math.log(one.run_seconds) for one in worked]))
    failing = Feasibility(space.codes()).failing(
        at.tolist(), [numbers[key_of(one.setting)] for one in failed]
    )
    noise = {crowded: spread(worked, crowded) for crowded in (False, True)}
    start = float(np.median([one.start_seconds for one in worked]))
    lost = float(np.median([one.start_seconds for one in failed])) if failed else 0.0
    own = np.random.default_rng(0).normal(0, REMAINDER, len(settings))
    recorded: dict[int, list[list[float]]] = {number: [] for number in at.tolist()}
    for number, one in zip(at.tolist(), worked, strict=True):
        recorded[number] += one.repeats
    points = []
    for number, setting in enumerate(settings):
        if failing[number] > 1 / 2:
            why = failed[0].failure
            points.append(GridPoint(setting=dict(setting), start_seconds=lost, failure=why))
            continue
        speed = math.exp(speeds[number] + (0 if number in recorded else own[number]))
        points.append(
            GridPoint(
                setting=dict(setting),
                start_seconds=start,
                run_seconds=round(math.exp(runs[number]), 3),
                repeats=[[round(speed, 2)]],
                noise=round(noise[_crowded(setting)], 4),
                recorded=recorded.get(number, []),
            )
        )
    return points


def spread(visits: Sequence[Visit], crowded: bool) -> float:
    """Return the standard deviation of the log of one round, each about the mean of its setting.

    Args:
        visits: that worked.
        crowded: whether to look at settings with more threads than cores, or at the others.

    Raises:
        SystemExit: none of these was visited twice.
    """
    logs: dict[str, list[float]] = {}
    for one in visits:
        if _crowded(one.setting) == crowded:
            logs.setdefault(key_of(one.setting), []).extend(one.log_speeds())
    squares = sum(float(np.var(values)) * len(values) for values in logs.values())
    freedom = sum(len(values) - 1 for values in logs.values())
    if logs and not freedom:
        raise SystemExit("no setting was visited twice: record another round")
    return math.sqrt(squares / freedom) if freedom else 0.0


def _crowded(setting: Setting) -> bool:
    return max(int(setting["threads"]), int(setting.get("threads_batch", 1))) > CORES


def _predicted(model: SpeedModel, at: Any, logs: Any) -> Any:
    """Return what the model believes of every setting, under the likeliest noise."""
    model.learn(at, logs, np.ones(len(logs)))
    return model.posterior(at, logs, model.noise_variance()[at]).mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Record one grid, or make the file of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "fill"))
    parser.add_argument("name", choices=tuple(SPECS))
    parser.add_argument("--settings", type=int, default=84)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    workspace = Workspace()
    if args.what == "record":
        record(args.name, args.settings, args.rounds, workspace)
        return
    visits = read_grid(workspace.settings.home / "grids" / f"{args.name}.visits.jsonl")
    points = fill(args.name, visits)
    write_grid(GRIDS / f"{args.name}.jsonl", points)


if __name__ == "__main__":
    main()
