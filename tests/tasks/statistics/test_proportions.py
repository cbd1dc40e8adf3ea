"""Tests and intervals of proportions, against published figures and brute force."""

import itertools
import math

import pytest
from scipy.optimize import minimize_scalar

from weighbridge.tasks.statistics.proportions import (
    mcnemar_mid_p,
    normal_quantile,
    sign_flip_mid_p,
    tango,
    tango_score,
)

Z = normal_quantile(0.05)


def test_mid_p_is_the_published_one() -> None:
    """Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al. 2009),
    1 and 7 discordant pairs: 0.0391 in Fagerland, Lydersen, Laake (2013), table 7.
    """
    assert mcnemar_mid_p(1, 7) == pytest.approx(0.0391, abs=5e-5)


def test_tangos_interval_is_the_published_one() -> None:
    """The same pairs among 21: -0.517 to -0.026 in Fagerland, Lydersen, Laake (2014)."""
    assert tango(1, 7, 21, Z) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 0), (3, 9), (20, 40), (5, 5)])
def test_mid_p_is_the_exact_one_less_half_of_what_was_seen(gained: int, lost: int) -> None:
    """The supplement of Fagerland, Lydersen, Laake (2013) computes it in this way."""
    from scipy.stats import binom

    both = gained + lost
    seen = binom.pmf(gained, both, 0.5)
    exact = 2 * binom.cdf(min(gained, lost), both, 0.5)
    expected = exact - seen if gained != lost else 1 - seen / 2
    assert mcnemar_mid_p(gained, lost) == pytest.approx(expected)


@pytest.mark.parametrize("sums", [[3, -1, 2, 2], [5], [1, 1, -1, 4, 4, -3, 2], [0, 0]])
def test_the_test_of_signs_counts_every_choice_of_signs(sums: list[int]) -> None:
    seen = abs(sum(sums))
    totals = [
        abs(sum(sign * number for sign, number in zip(signs, sums, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    beyond = sum(total > seen for total in totals) + sum(total == seen for total in totals) / 2
    assert sign_flip_mid_p(sums) == pytest.approx(beyond / len(totals))


def likelihood(losing: float, difference: float, gained: int, lost: int, rows: int) -> float:
    gaining = losing + difference
    parts = ((gained, gaining), (lost, losing), (rows - gained - lost, 1 - gaining - losing))
    return sum(count * math.log(chance) for count, chance in parts if count and chance > 0)


@pytest.mark.parametrize("case", [(40, 20, 160, 0.05), (1, 7, 21, -0.1), (3, 4, 150, -0.02)])
def test_tangos_score_is_that_of_the_likelihood(case: tuple[int, int, int, float]) -> None:
    """Its variance comes of the likeliest chances with that difference; these are searched here."""
    gained, lost, rows, difference = case
    found = minimize_scalar(
        lambda losing: -likelihood(losing, difference, gained, lost, rows),
        bounds=(max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    variance = rows * (2 * found + difference - difference**2)
    expected = (gained - lost - rows * difference) / math.sqrt(variance)
    assert tango_score(*case) == pytest.approx(expected, rel=1e-5)


def test_no_difference_in_ten_rows_proves_nothing() -> None:
    low, high = tango(0, 0, 10, Z)
    assert (low, high) == pytest.approx((-Z * Z / (10 + Z * Z), Z * Z / (10 + Z * Z)))
    assert mcnemar_mid_p(0, 0) == 0.5
