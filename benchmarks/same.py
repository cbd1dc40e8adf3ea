"""One candidate under two labels: how often it "beats" itself, and whether a machine that becomes
slower is noticed.

    python -m benchmarks.same [--quick] [--simulated]

Live: the demo's model on llama.cpp is champion and challenger in 30 weighings, then in 30 more, in
which its engines are stopped for a tenth of the time from the middle on. The machine drifts by
itself as well: a witness beside the engines (benchmarks/witness.py) tells by how much, and so what
both together, the net drift, come to. Simulated: the same with the product's own statistics on
runs that are drawn, whose logs spread by 7 %, and by 13 % as on a machine that is shared.
"""

import argparse
import contextlib
import itertools
import math
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from benchmarks.common import Figures, report
from benchmarks.loads import demo_model
from benchmarks.witness import Sample, change, witness
from weighbridge.core.artifact import Artifact
from weighbridge.core.progress import Step, listen
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.optimize import OptimizeArgs, optimize
from weighbridge.tasks.repeat import Repeated, is_decided, repeat
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.statistics.repeats import DRIFT, drift, faster, planned_looks
from weighbridge.tasks.weigh import weigh
from weighbridge.tasks.weigh_args import WeighArgs

WEIGHINGS: Final = 30
NOISES: Final = {"": 0.07, "_shared": 0.13}
"""Standard deviation of the log of a single run: of twelve on a quiet machine, and of the 30
undisturbed live weighings on one whose processors were taken for a seventh of the time.
"""
SLOWER: Final = 0.1
PERIOD: Final = 0.05
"""Seconds in which an engine is stopped once."""
SELECT: Final = SelectArgs(max_loss=None, max_nll_increase=None)
METRICS: Final = EvaluateArgs.model_validate(
    {"metrics": [{"kind": "exact_match"}], "limit": 8, "max_new_tokens": 8}
)


def simulated(
    draws: int, challenger: float, slower: float, looks: tuple[int, ...], noise: float
) -> list[float]:
    """Return the shares of weighings that found the challenger faster, and the machine unsteady,
    and their mean number of blocks.

    Args:
        draws: how many weighings.
        challenger: its true speed, the champion's being 1.
        slower: part by which the machine becomes slower in the middle.
        looks: numbers of blocks after which is looked.
        noise: standard deviation of the log of a single run.
    """
    random, won, unsteady, blocks = np.random.default_rng(11), 0, 0, 0
    truths = np.array([1.0, 1.0, challenger])
    for _ in range(draws):
        runs = truths * np.exp(random.normal(0, noise, (looks[-1], 3)))
        for look in looks:
            # The middle is that of the weighing, as long as it turns out to be.
            slowed = runs[:look] * np.where(np.arange(look) < look / 2, 1, 1 - slower)[:, None]
            champion, again, other = (list(column) for column in slowed.T)
            if is_decided(champion, again, [other], SELECT.min_improvement, looks):
                break
        steady = drift(champion, again, [other], looks=looks).steady
        claim = faster(champion, other, SELECT.min_improvement, looks=looks)
        unsteady += not steady
        won += steady and claim.verdict == "shown"
        blocks += len(champion)
    return [won / draws, unsteady / draws, blocks / draws]


def add_simulated(figures: Figures, draws: int) -> None:
    """Add what the statistics do with the default numbers of blocks, and with five alone."""
    numbers = {"5_to_20": planned_looks(5, 20), "5": (5,)}
    for (machine, noise), (name, looks) in itertools.product(NOISES.items(), numbers.items()):
        for case, challenger, slower in (
            ("same", 1.0, 0.0),
            ("same_slowed", 1.0, SLOWER),
            ("faster_by_15", 1.15, 0.0),
            ("faster_by_30", 1.3, 0.0),
        ):
            won, unsteady, blocks = simulated(draws, challenger, slower, looks, noise)
            key = f"simulated{machine}_{name}_{case}"
            figures.add(f"{key}_wins", won, at_most=1 / WEIGHINGS if challenger == 1 else None)
            figures.add(f"{key}_unsteady", unsteady, at_least=0.95 if slower else None)
            figures.add(f"{key}_blocks", blocks)
            print(f"{key}: done", file=sys.stderr, flush=True)


def candidates(workspace: Workspace) -> tuple[Artifact, Measurement, Measurement]:
    """Return the data, and one candidate as champion and as challenger."""
    downloaded = demo_model(workspace)
    args = OptimizeArgs.model_validate({"variants": [{"kind": "gguf", "quantization": "Q8_0"}]})
    (variant,) = optimize(downloaded.model, downloaded.data, args, workspace).variants
    weighed = weigh([variant], downloaded.data, METRICS, how(1), workspace)
    (measured,) = weighed.measurements
    with workspace.store.scratch() as scratch:
        for file in variant.artifact.path.iterdir():
            (scratch / file.name).symlink_to(file.resolve())
        # Another digest: else the product sees that it is the champion itself.
        (scratch / "label").write_text("another")
        copy = workspace.store.add(scratch, "gguf", adopt=False)
    other = measured.candidate.variant.model_copy(update={"artifact": copy})
    candidate = measured.candidate.model_copy(update={"label": "another", "variant": other})
    return downloaded.data, measured, measured.model_copy(update={"candidate": candidate})


def how(seconds: float) -> WeighArgs:
    return WeighArgs(
        engines=[LlamaCppArgs(threads=1)],
        concurrency=[4],
        requests=8,
        seconds=1,
        max_tokens=16,
        repeats=5,
        max_repeats=5,
        repeat_seconds=seconds,
    )


@contextlib.contextmanager
def slowed(share: float, spared: psutil.Process) -> Iterator[Callable[[Step], None]]:
    """Stop this process's children, but one, for a share of the time once a listener has heard that
    half of the blocks are done.
    """
    half, over = threading.Event(), threading.Event()

    def stop_and_go() -> None:
        half.wait()
        while not over.is_set():
            children = [
                child
                for child in psutil.Process().children(recursive=True)
                if child.pid != spared.pid
            ]
            _signal(children, signal.SIGSTOP)
            time.sleep(PERIOD * share)
            _signal(children, signal.SIGCONT)
            time.sleep(PERIOD * (1 - share))

    def hear(step: Step) -> None:
        if step.unit == "blocks" and share and 2 * step.done >= (step.total or math.inf):
            half.set()

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield hear
    finally:
        over.set()
        half.set()
        thread.join()


def _signal(children: list[psutil.Process], number: signal.Signals) -> None:
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


def live(weighings: int, seconds: float, figures: Figures, workspace: Workspace) -> None:
    """Weigh it against itself, and again while the machine becomes slower."""
    data, champion, challenger = candidates(workspace)
    objective = Objective(SELECT)
    for case, share in (("same", 0.0), ("same_slowed", SLOWER)):
        won, noticed, nets, spreads = 0, [], [], []
        for number in range(weighings):
            # A number of its own for each: or else the blocks of the one before were taken.
            attempt = number + (weighings if share else 0)
            given = (data, METRICS, how(seconds), SELECT, workspace, attempt)
            with witness() as beside, slowed(share, beside.process) as hear:
                ends: list[float] = []
                with listen(hear), listen(_noting(ends)):
                    repeated = repeat([challenger], {}, champion, *given)
                nets.append(net_drift(beside.samples(), ends, share))
            assert repeated.champion is not None
            assert repeated.noise is not None
            claim = objective.improvement(repeated.champion, repeated.measurements[0]).claim
            won += claim.verdict == "shown"
            noticed.append(not repeated.noise.drift.steady)
            spreads.append(_spread(repeated, objective))
            print(
                f"{case} {number}: {repeated.noise.drift.why}; net {nets[-1]:+.1%}; {claim.why}",
                file=sys.stderr,
            )
        figures.add(f"live_{case}_wins", float(won), at_most=1)
        goal = 0.95 if share else None
        figures.add(f"live_{case}_unsteady", sum(noticed) / weighings, at_least=goal)
        drifted, recognised = recognition(nets, noticed)
        figures.add(f"live_{case}_drifted", drifted)
        if drifted:
            figures.add(f"live_{case}_unsteady_of_the_drifted", recognised, at_least=goal)
        figures.add(f"live_{case}_net_drift", nets)
        figures.add(f"live_{case}_spread_of_runs", spreads)


def _noting(ends: list[float]) -> Callable[[Step], None]:
    """Return a listener that notes when the first block began, and when each one ended."""

    def hear(step: Step) -> None:
        if step.unit == "blocks":
            ends.append(time.monotonic())

    return hear


def net_drift(samples: Sequence[Sample], ends: Sequence[float], share: float) -> float:
    """Return by which share the engines' pace has changed from the first half to the last: what the
    machine did by itself, and what was taken from it.
    """
    return (1 + change(samples, ends)) * (1 - share) - 1


def recognition(nets: Sequence[float], noticed: Sequence[bool]) -> tuple[int, float]:
    """Return in how many weighings the net drift was above what counts as steady, and in which part
    of these it was noticed; NaN where there are none.
    """
    drifted = [seen for net, seen in zip(nets, noticed, strict=True) if abs(net) > DRIFT]
    return len(drifted), sum(drifted) / len(drifted) if drifted else math.nan


def _spread(repeated: Repeated, objective: Objective) -> float:
    """Return the standard deviation of the logs of one label's runs."""
    return statistics.stdev(map(math.log, objective.runs(repeated.measurements[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 weighings of each kind, 200 draws")
    parser.add_argument("--simulated", action="store_true", help="without engines")
    options = parser.parse_args()
    figures = Figures("same")
    add_simulated(figures, 200 if options.quick else 2000)
    if not options.simulated:
        with tempfile.TemporaryDirectory(prefix="weighbridge-bench-") as folder:
            workspace = Workspace(Settings(home=Path(folder) / "home"))
            live(3 if options.quick else WEIGHINGS, 0.5, figures, workspace)
    report(figures)


if __name__ == "__main__":
    main()
