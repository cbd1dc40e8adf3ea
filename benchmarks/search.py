"""The search of engine options on recorded grids, beside random, halving, TPE and a hill climb.

Every method asks the same replay of a grid and pays for it in the recorded seconds of starts, runs
and failures. A figure is the true speed of what it takes, over that of the grid's best: the mean
over the seeds, and the 5th percentile. Budgets are parts of the seconds that one round of every
setting takes. Beside them stands what could be reached at most (benchmarks/search_bounds.py). Last,
searches are killed at random moments and gone on with.

Usage: python -m benchmarks.search [--quick] [--seeds N] [--grid NAME …] [--method NAME …]
"""

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import optuna

from benchmarks.common import Figures, report
from benchmarks.search_bounds import SHORTLISTS, laws, told_the_best, told_the_laws
from benchmarks.search_methods import METHODS, Method
from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.replay import Replay, replay_of
from weighbridge.tasks.search.search import search
from weighbridge.tasks.search.space import CANDIDATE, Space
from weighbridge.tasks.search.visits import GridPoint, Question, Visit, read_grid

GRIDS: Final = sorted(Path(__file__).with_name("grids").glob("*.jsonl"))
GOALS: Final = {0.1: (0.95, 0.90), 0.2: (0.97, 0.95)}
SMALL: Final = 30
SMALL_PART, SMALL_GOAL = 0.4, 0.97
KILLS: Final = 20
KILLED_PART: Final = 0.1


def reached(
    space: Space, points: Sequence[GridPoint], method: Method, part: float, seed: int
) -> float:
    """Return the true speed of what a method takes with a part of the grid's seconds, over that of
    the best.
    """
    replay = Replay(points, seed)
    taken = method(space, replay, Budget(part * replay.seconds()), seed)
    best = max(replay.truth(setting) for setting in space.settings)
    return math.exp(replay.truth(taken) - best) if taken else 0.0


def compare(name: str, path: Path, seeds: int, methods: Sequence[str], figures: Figures) -> None:
    """Add every method's mean and 5th percentile at every budget."""
    space, _ = replay_of(path)
    points = read_grid(path)
    for part, (mean, low) in GOALS.items():
        means = {}
        for method in methods:
            run = METHODS[method]
            print(f"{name} at {part:.0%}: {method}", file=sys.stderr, flush=True)
            shares = [reached(space, points, run, part, seed) for seed in range(seeds)]
            means[method] = float(np.mean(shares))
            key = f"{name}_{part * 100:.0f}_{method}"
            ours = method == "ours"
            figures.add(f"{key}_mean", means[method], at_least=mean if ours else None)
            figures.add(
                f"{key}_p5", float(np.quantile(shares, 0.05)), at_least=low if ours else None
            )
        if others := [value for key, value in means.items() if key != "ours"]:
            ahead = means["ours"] - max(others)
            figures.add(f"{name}_{part * 100:.0f}_ahead_of_the_next", ahead, at_least=0.0)


def bounds(name: str, path: Path, seeds: int, figures: Figures) -> None:
    """Add what those reach at every budget who know what no search can know."""
    space, replay = replay_of(path)
    points = read_grid(path)
    scales, noise = laws(space, replay)
    for part in GOALS:
        print(f"{name} at {part:.0%}: bounds", file=sys.stderr, flush=True)
        budget = Budget(part * replay.seconds())
        reached_by = {
            f"told_the_best_{count}": told_the_best(replay, count, part * replay.seconds())
            for count in SHORTLISTS
        }
        reached_by["told_the_laws"] = np.array(
            [
                told_the_laws(space, Replay(points, seed), scales, noise, budget)
                for seed in range(seeds)
            ]
        )
        for who, shares in reached_by.items():
            key = f"{name}_{part * 100:.0f}_{who}"
            figures.add(f"{key}_mean", float(np.mean(shares)))
            figures.add(f"{key}_p5", float(np.quantile(shares, 0.05)))


def small(points: Sequence[GridPoint]) -> list[GridPoint]:
    """Return the part of a grid in which as many options as needed keep their first value, so that
    fewer than SMALL settings are left.
    """
    fixed = {CANDIDATE: points[0].setting[CANDIDATE]}
    left = [point for point in points if _has(point, fixed)]
    for name, value in reversed(points[0].setting.items()):
        if len(left) < SMALL:
            break
        fixed[name] = value
        left = [point for point in points if _has(point, fixed)]
    return left


def _has(point: GridPoint, values: dict[str, object]) -> bool:
    return all(point.setting[name] == value for name, value in values.items())


def compare_small(name: str, path: Path, seeds: int, figures: Figures) -> None:
    """Add our mean on a space of fewer than SMALL settings."""
    points = small(read_grid(path))
    space = Space(tuple(point.setting for point in points), (0,))
    shares = [reached(space, points, METHODS["ours"], SMALL_PART, seed) for seed in range(seeds)]
    figures.add(f"{name}_{len(points)}_settings", float(np.mean(shares)), at_least=SMALL_GOAL)


def kill(path: Path, kills: int, figures: Figures) -> None:
    """Kill searches at random moments and go on with them; add how many found the same winner."""
    space, replay = replay_of(path)
    budget = Budget(KILLED_PART * replay.seconds())
    expected = search(space, replay, budget).winner
    same = 0
    for number in range(kills):
        with tempfile.TemporaryDirectory() as folder:
            storage = Path(folder, "search.journal")
            _die_searching(path, budget, storage, random.Random(number).uniform(0.05, 0.6))
            found = search(space, Replay(read_grid(path)), budget, storage=storage)
            same += found.winner == expected
    figures.add("same_winner_after_kill", same / kills, at_least=1.0)


def _die_searching(path: Path, budget: Budget, storage: Path, after: float) -> None:
    """Search in a child process, and kill that after some seconds."""
    child = os.fork()
    if child == 0:
        space, replay = replay_of(path)

        def slowly(question: Question) -> Visit:
            time.sleep(0.01)
            return replay(question)

        search(space, slowly, budget, storage=storage)
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare on every grid, then kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 seeds")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--grid", action="append", choices=[path.stem for path in GRIDS])
    parser.add_argument("--method", action="append", choices=tuple(METHODS), help="and ours")
    args = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    figures = Figures("search")
    seeds = 20 if args.quick else args.seeds
    paths = [path for path in GRIDS if path.stem in (args.grid or [path.stem])]
    methods = [one for one in METHODS if one in ("ours", *(args.method or METHODS))]
    for path in paths:
        compare(path.stem, path, seeds, methods, figures)
        bounds(path.stem, path, seeds, figures)
        compare_small(path.stem, path, seeds, figures)
    kill(paths[0], KILLS, figures)
    report(figures)


if __name__ == "__main__":
    main()
