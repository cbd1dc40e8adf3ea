"""How often the gate promotes: on simulated rows, beside `>=` and the rule of earlier releases.

    python -m benchmarks.gate [--quick]

A weighing has one or ten challengers of one fine-tune, whose truth is the scenario's. Rows differ
between champion and challenger with the stated discordance, by themselves or in clusters of five
(intraclass correlation 0.25). Single runs and each of five repeats spread by 7 %. A draw is drawn
as counts of clusters by what they gained and lost, and judged by the product's own statistics,
which are remembered by those counts; some draws of every cell go through `select` itself as whole
measurements, and must end alike.

The rule of before: on the validation rows, better by Wald's interval, or no worse than 0.02 by the
estimate and 5 % faster by single runs. `>=`: no worse and no slower, by the estimates.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.stats import binom

from benchmarks.common import Figures, report
from benchmarks.gate_draws import BLOCKS, Booleans, Cell, Counts, Floats, Speeds, Split
from weighbridge.core.artifact import Artifact
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Candidate, Measurement, Noise, Repeat, Variant
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select import select
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.statistics.repeats import drift
from weighbridge.tasks.statistics.sample_size import POWER, smallest_gain, smallest_margin

ROWS: Final = (150, 500, 1500)
DISCORDANCES: Final = (0.04, 0.1, 0.2)
CLUSTERS: Final = (1, 5)
CANDIDATES: Final = (1, 10)
DRAWS: Final = 2000
CHECKED: Final = 2
"""Draws of a cell that go through `select` itself; one where there are ten challengers."""
BEYOND_CHANCE: Final = 1e-3


@dataclass(frozen=True)
class Scenario:
    """What is true of all challengers."""

    name: str
    gain: Callable[[Cell], float | None]
    """True difference in right answers; None where the scenario makes no sense."""
    speed: float
    margin: Callable[[Cell], float]
    at_most: float | None = None
    power: bool = False
    lost: bool = False


def _default_margin(_: Cell) -> float:
    return SelectArgs().margin


def _worse(times: float) -> Callable[[Cell], float | None]:
    def gain(cell: Cell) -> float | None:
        loss = times * SelectArgs().margin
        return -loss if loss <= cell.discordance else None

    return gain


def _planned_gain(cell: Cell) -> float | None:
    return smallest_gain(cell.rows_by_themselves, cell.discordance)


def _planned_margin(cell: Cell) -> float:
    return smallest_margin(cell.rows, cell.spread)


SCENARIOS: Final = (
    Scenario("equal", lambda _: 0.0, 1.0, _default_margin, at_most=0.05),
    Scenario("worse_by_margin", _worse(1), 2.0, _default_margin, at_most=0.025),
    Scenario("worse_by_twice", _worse(2), 2.0, _default_margin, at_most=0.005),
    Scenario("better_as_planned", _planned_gain, 1.0, _default_margin, power=True),
    Scenario("as_good_as_planned", lambda _: 0.0, 2.0, _planned_margin),
    Scenario("lost_champion", lambda _: 0.0, 2.0, _default_margin, at_most=0.0, lost=True),
)


@dataclass
class Weighings:
    """Many draws of one cell under one scenario."""

    cell: Cell
    scenario: Scenario
    validation: Split
    test: Split
    """Of each challenger; only the finalist's is looked at."""
    speeds: Speeds
    args: SelectArgs = field(init=False)

    def __post_init__(self) -> None:
        self.args = SelectArgs(
            max_loss=None, max_nll_increase=None, margin=self.scenario.margin(self.cell)
        )

    @property
    def draws(self) -> int:
        return len(self.speeds.champion)

    def promoted(self) -> Booleans:
        """Return in which draws the product's rules promote a challenger."""
        gain = self.speeds.faster_than_champion(self.args.min_improvement)
        verdicts = self._replaces(self.validation, gain)
        likely = np.where(verdicts == 1, 0, np.where(verdicts == 0, 1, 2))
        field = likely == likely.min(axis=1, keepdims=True)
        best = np.where(field, self.speeds.means(), -np.inf).argmax(axis=1)
        # All are as large and have as few options changed: the first of those tied.
        finalist = (field & self.speeds.tied(best)).argmax(axis=1)
        draws = np.arange(self.draws)
        alone = Split(self.cell, self.test.kinds, self.test.counts[draws, finalist][:, None, :])
        proved = self._replaces(alone, gain[draws, finalist][:, None])[:, 0] == 1
        promoted: Booleans = proved & (verdicts[draws, finalist] != -1)
        return promoted

    def _replaces(self, split: Split, gain: Counts) -> Counts:
        better, as_good = split.better(), split.not_worse(self.args.margin)
        shown = (better == 1) | ((as_good == 1) & (gain == 1))
        refuted = (better == -1) & ((as_good == -1) | (gain == -1))
        return np.where(shown, 1, np.where(refuted, -1, 0))

    def promoted_before(self) -> Booleans:
        """Return in which draws the rule of earlier releases did."""
        difference, error = self.validation.sums()[0], self.validation.wald_error()
        gain = np.exp(self.speeds.challengers - self.speeds.champion[:, None]) - 1
        as_good = difference >= -SelectArgs().margin - 1e-9
        beats = (difference - 1.96 * error > 0) | (as_good & (gain >= 0.05))
        return np.asarray(beats.any(axis=1) | self.scenario.lost)

    def promoted_by_estimates(self) -> Booleans:
        """Return in which draws `>=` does."""
        faster = self.speeds.challengers >= self.speeds.champion[:, None]
        as_good = self.validation.sums()[0] >= 0
        return np.asarray((as_good & faster).any(axis=1) | self.scenario.lost)

    def selected(self, draw: int) -> bool:
        """Return whether `select` promotes a challenger in a draw, given whole measurements."""
        champion = _measurement(
            "champion",
            self._champions_score(self.validation, draw),
            self._champions_score(self.test, draw),
            self.speeds.champion[draw],
            self.speeds.champion_repeats[draw],
            "the engine died" if self.scenario.lost else "",
        )
        challengers = [
            _measurement(
                f"{number:02}",
                _score(_rows(self.validation, draw, number)[1], number, self.cell.cluster),
                _score(_rows(self.test, draw, number)[1], number, self.cell.cluster),
                self.speeds.challengers[draw, number],
                self.speeds.challengers_repeats[draw, number],
            )
            for number in range(self.cell.candidates)
        ]
        return select(challengers, {}, champion, self.args, {}).winner is not None

    def _champions_score(self, split: Split, draw: int) -> Score:
        # Every challenger is compared with rows of its own, as they were drawn.
        parts = [
            _score(_rows(split, draw, number)[0], number, self.cell.cluster)
            for number in range(self.cell.candidates)
        ]
        rows = [row for part in parts for row in part.per_example]
        return Score(
            value=sum(rows) / len(rows),
            low=0.0,
            high=1.0,
            per_example=rows,
            ids=[name for part in parts for name in part.ids],
            clusters=[name for part in parts for name in part.clusters],
        )


def _rows(split: Split, draw: int, number: int) -> tuple[list[float], list[float]]:
    """Return the champion's and a challenger's rows, cluster by cluster."""
    before: list[float] = []
    after: list[float] = []
    for (gained, lost), times in zip(split.kinds, split.counts[draw, number], strict=True):
        same = [1.0] * (split.cell.cluster - gained - lost)
        before += ([0.0] * gained + [1.0] * lost + same) * int(times)
        after += ([1.0] * gained + [0.0] * lost + same) * int(times)
    return before, after


def _score(rows: list[float], number: int, cluster: int) -> Score:
    places = range(len(rows))
    return Score(
        value=sum(rows) / len(rows),
        low=0.0,
        high=1.0,
        per_example=rows,
        ids=[f"{number}-{place}" for place in places],
        clusters=[f"{number}-{place // cluster}" for place in places] if cluster > 1 else [],
    )


def _measurement(
    label: str, validation: Score, test: Score, speed: float, repeats: Floats, failure: str = ""
) -> Measurement:
    digest = "sha256:" + label.encode().hex().ljust(64, "0")
    artifact = Artifact(digest=digest, format="gguf", size=1)
    variant = Variant(label=label, optimizer="none", artifact=artifact)
    return Measurement(
        candidate=Candidate(label=label, variant=variant, engine=LlamaCppArgs(kind="llama_cpp")),
        scores={} if failure else {"exact_match": validation},
        test_scores={} if failure else {"exact_match": test},
        predictions=None,
        load=[] if failure else [_load(speed)],
        load_seconds=1.0,
        peak_memory=1,
        repeats=[Repeat(block=block, load=_load(one)) for block, one in enumerate(repeats)],
        noise=Noise(
            weighing="simulated",
            looks=(BLOCKS,),
            ended="as planned",
            reference="champion",
            drift=_STEADY,
        ),
        failure=failure,
    )


_STEADY: Final = drift([1.0] * BLOCKS, [1.0] * BLOCKS)
"""The machine is not what is simulated."""


def _load(log_of_speed: float) -> LoadFigures:
    return LoadFigures(
        concurrency=1,
        requests=100,
        errors=0,
        output_tokens=1000,
        seconds=1.0,
        tokens_per_second=1000 * math.exp(log_of_speed),
        requests_per_second=1.0,
        ttft_p50=0.1,
        ttft_p95=0.2,
        itl_p50=0.01,
        itl_p95=0.02,
    )


def cells() -> Iterator[Cell]:
    for candidates, cluster, rows, discordance in itertools.product(
        CANDIDATES, CLUSTERS, ROWS, DISCORDANCES
    ):
        yield Cell(rows, discordance, cluster, candidates)


def weighings(
    cell: Cell, scenario: Scenario, draws: int, rng: np.random.Generator
) -> Weighings | None:
    """Return draws of a scenario; None where there is none such with these data."""
    gain = scenario.gain(cell)
    if gain is None:
        return None
    shape = (draws, cell.candidates)
    return Weighings(
        cell,
        scenario,
        Split.draw(cell, gain, shape, rng),
        Split.draw(cell, gain, shape, rng),
        Speeds.draw(scenario.speed, shape, rng),
    )


@dataclass(frozen=True)
class Result:
    """How often each rule promoted in one cell."""

    cell: Cell
    draws: int
    ours: int
    before: int
    estimates: int

    def share(self, promoted: int) -> float:
        return promoted / self.draws

    def above(self, most: float) -> bool:
        """Whether this cell promotes more often than a bound, beyond chance."""
        return bool(binom.sf(self.ours - 1, self.draws, most) < BEYOND_CHANCE)

    def below(self, least: float) -> bool:
        return bool(binom.cdf(self.ours, self.draws, least) < BEYOND_CHANCE)


def run(cell: Cell, scenario: Scenario, draws: int, rng: np.random.Generator) -> Result | None:
    """Return how often each rule promotes, and hold the fast way against `select`."""
    many = weighings(cell, scenario, draws, rng)
    if many is None:
        return None
    checked = draws if scenario.lost else CHECKED if cell.candidates == 1 else 1
    selected = [many.selected(draw) for draw in range(checked)]
    ours = np.array(selected) if scenario.lost else many.promoted()
    assert selected == ours[:checked].tolist(), f"select differs: {cell}, {scenario.name}"
    return Result(
        cell,
        draws,
        int(ours.sum()),
        int(many.promoted_before().sum()),
        int(many.promoted_by_estimates().sum()),
    )


def add(figures: Figures, scenario: Scenario, results: list[Result]) -> None:
    """Add the share of promotions over all cells, the worst cell, and the cells beyond the goal."""
    name = scenario.name
    shares = [result.share(result.ours) for result in results]
    figures.add(f"{name}_ours", float(np.mean(shares)), at_most=scenario.at_most)
    figures.add(f"{name}_ours_worst_cell", max(shares))
    for rule in ("before", "estimates"):
        figures.add(
            f"{name}_{rule}",
            float(np.mean([result.share(getattr(result, rule)) for result in results])),
        )
    if scenario.power:
        off = [one for one in results if one.above(POWER + 0.03) or one.below(POWER - 0.03)]
        figures.add(f"{name}_ours_lowest_cell", min(shares))
        figures.add(f"{name}_cells_beyond_3_points", len(off), at_most=0)
    elif scenario.at_most is not None:
        beyond = [one for one in results if one.above(scenario.at_most)]
        figures.add(f"{name}_cells_beyond_goal", len(beyond), at_most=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    parser.add_argument("--cells", action="store_true", help="print every cell")
    args = parser.parse_args()
    draws = DRAWS // 10 if args.quick else DRAWS
    figures, rng, started = Figures("gate"), np.random.default_rng(20240229), time.monotonic()
    for scenario in SCENARIOS:
        results = []
        for cell in cells():
            # What becomes of a lost champion does not depend on the draws.
            result = run(cell, scenario, CHECKED if scenario.lost else draws, rng)
            if result is None:
                continue
            results.append(result)
            if args.cells:
                share = result.share(result.ours)
                print(f"{scenario.name}: {cell}: {share:.2%}", file=sys.stderr, flush=True)
        add(figures, scenario, results)
        print(f"{scenario.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    report(figures)


if __name__ == "__main__":
    main()
