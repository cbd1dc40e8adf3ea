"""How many rows a claim takes, against the figures in the documentation and against simulation."""

import math
import random

import pytest
from scipy.stats import binom

from weighbridge.tasks.statistics.proportions import mcnemar_mid_p, normal_quantile, tango
from weighbridge.tasks.statistics.sample_size import (
    chance_of_gain,
    rows_for,
    smallest_gain,
    smallest_margin,
)


@pytest.mark.parametrize(("discordance", "rows"), [(0.02, 393), (0.1, 1963)])
def test_two_points_take_as_many_rows_as_the_documentation_says(
    discordance: float, rows: int
) -> None:
    assert rows_for(0.02, math.sqrt(discordance)) == rows


@pytest.mark.parametrize("rows", [30, 393, 1963])
def test_the_smallest_margin_takes_as_many_rows_as_there_are(rows: int) -> None:
    assert rows_for(smallest_margin(rows, 0.3) + 1e-12, 0.3) == rows


def test_so_many_rows_show_it_in_four_of_five_cases() -> None:
    """400 draws of two equal models that differ in a tenth of the answers: 80 %, give or take 4."""
    draw, rows = random.Random(5), rows_for(0.05, math.sqrt(0.1))
    shown = 0
    for _ in range(400):
        differ = sum(draw.random() < 0.1 for _ in range(rows))
        gained = sum(draw.random() < 0.5 for _ in range(differ))
        shown += tango(gained, differ - gained, rows, normal_quantile(0.05))[0] > -0.05
    assert shown / 400 == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 400))


def test_the_chance_of_a_gain_is_that_of_the_test_itself() -> None:
    rows, discordance, part = 40, 0.3, 0.7
    shown = sum(
        binom.pmf(differ, rows, discordance) * binom.pmf(gained, differ, (1 + part) / 2)
        for differ in range(rows // 2)
        for gained in range(differ // 2 + 1, differ + 1)
        if mcnemar_mid_p(gained, differ - gained) <= 0.05
    )
    found = chance_of_gain(rows, discordance, discordance * part)
    # More than half of the rows differ once in 10,000 draws.
    assert found == pytest.approx(shown, abs=1e-2)


def test_the_smallest_gain_is_shown_in_four_of_five_cases_or_none_is() -> None:
    gain = smallest_gain(500, 0.1)
    assert gain is not None
    assert chance_of_gain(500, 0.1, gain) == pytest.approx(0.8, abs=0.015)
    assert smallest_gain(150, 0.04) is None


@pytest.mark.parametrize(("rows", "discordance"), [(70, 0.1), (300, 0.04), (500, 0.2), (2000, 0.1)])
def test_the_smallest_gain_is_as_said_by_every_way_to_find_it(
    rows: int, discordance: float
) -> None:
    gain = smallest_gain(rows, discordance)
    assert gain is not None
    assert chance_of_gain(rows, discordance, gain) == pytest.approx(0.8, abs=0.015)
    assert chance_of_gain(rows, discordance, 0.9 * gain) < 0.8
