"""How much single runs differ, by what a weighing has measured of it."""

import math
import random

import pytest

from weighbridge.tasks.statistics.repeats import USUAL_SPREAD
from weighbridge.tasks.statistics.single_runs import luck, run_spread


def drawn(labels: int, blocks: int, spread: float, seed: int) -> list[list[float]]:
    draw = random.Random(seed)
    return [[draw.lognormvariate(label, spread) for _ in range(blocks)] for label in range(labels)]


@pytest.mark.parametrize("spread", [0.07, 0.15, 0.3])
def test_many_repeats_tell_the_spread_whatever_the_machine_did_between_blocks(
    spread: float,
) -> None:
    repeats = [
        [figure * (1 + number % 3) for number, figure in enumerate(runs)]
        for runs in drawn(4, 200, spread, seed=3)
    ]
    assert run_spread(repeats, []) == pytest.approx(spread, rel=0.1)


def test_few_repeats_are_taken_with_the_usual_spread() -> None:
    spreads = [run_spread(drawn(3, 5, 0.15, seed), []) for seed in range(200)]
    mean = math.sqrt(sum(spread**2 for spread in spreads) / len(spreads))
    # 8 degrees of freedom of them, and 4 of the usual one.
    assert mean == pytest.approx(math.sqrt((8 * 0.15**2 + 4 * USUAL_SPREAD**2) / 12), rel=0.05)


def test_a_machine_that_drifted_while_all_were_measured_once_makes_that_noisier() -> None:
    repeats = [[100.0] * 5, [100.0] * 5, [100.0] * 5]
    held, drifted = (
        run_spread(repeats, [(figure, label) for label, figure in enumerate(singles)])
        for singles in ((80.0, 80.0, 80.0), (100.0, 80.0, 60.0))
    )
    assert held <= USUAL_SPREAD, "all were measured at the same pace, if another than the repeats"
    assert drifted > 2 * held


def test_where_nothing_is_known_it_is_the_usual_one() -> None:
    assert run_spread([[], []], [(100.0, 0)]) == USUAL_SPREAD
    assert run_spread([[100.0, math.nan], [100.0, 100.0]], []) == USUAL_SPREAD
    assert run_spread([[100.0], [100.0]], []) == pytest.approx(USUAL_SPREAD)


def test_who_may_be_the_best_is_farther_behind_where_runs_differ_more() -> None:
    assert luck(2) == pytest.approx(0.15, abs=0.005)
    assert luck(3) == pytest.approx(0.18, abs=0.005)
    assert luck(3, 0.14) > luck(3)
