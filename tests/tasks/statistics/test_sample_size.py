"""How many rows a claim takes, against the figures in the documentation and against simulation."""

import math
import random

import pytest

from weighbridge.tasks.statistics.proportions import normal_quantile, tango
from weighbridge.tasks.statistics.sample_size import (
    rows_for,
    rows_for_discordance,
    smallest_margin,
    smallest_margin_at,
)


@pytest.mark.parametrize(("discordance", "rows"), [(0.02, 393), (0.1, 1963)])
def test_two_points_take_as_many_rows_as_the_documentation_says(
    discordance: float, rows: int
) -> None:
    assert rows_for_discordance(0.02, discordance) == rows


@pytest.mark.parametrize("rows", [30, 393, 1963])
def test_the_smallest_margin_takes_as_many_rows_as_there_are(rows: int) -> None:
    assert rows_for(smallest_margin(rows, 0.3) + 1e-12, 0.3) == rows
    assert smallest_margin_at(rows, 0.09) == pytest.approx(smallest_margin(rows, 0.3))


def test_so_many_rows_show_it_in_four_of_five_cases() -> None:
    """400 draws of two equal models that differ in a tenth of the answers: 80 %, give or take 4."""
    draw, rows = random.Random(5), rows_for_discordance(0.05, 0.1)
    shown = 0
    for _ in range(400):
        differ = sum(draw.random() < 0.1 for _ in range(rows))
        gained = sum(draw.random() < 0.5 for _ in range(differ))
        shown += tango(gained, differ - gained, rows, normal_quantile(0.05))[0] > -0.05
    assert shown / 400 == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 400))
