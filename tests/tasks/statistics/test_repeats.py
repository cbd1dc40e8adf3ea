"""Repeated runs: what they show, when to stop, and how often they err."""

import math

import numpy as np
import pytest
from scipy.stats import t

from weighbridge.tasks.statistics.repeats import (
    boundaries,
    drift,
    faster,
    levels,
    planned_looks,
    resolution,
    tied,
)

FLAT = [100.0, 101.0, 99.0, 100.5, 99.5]


def times(factor: float, runs: list[float]) -> list[float]:
    """Runs of one that is so many times as fast, give or take half a percent."""
    return [
        run * factor * wobble
        for run, wobble in zip(runs, (1.004, 0.997, 1.002, 0.999, 0.998), strict=True)
    ]


def test_boundaries_are_the_published_ones_of_lan_and_demets() -> None:
    """Pocock type, five looks, 0.05 two-sided: Reboussin et al., Controlled Clin. Trials 2000."""
    assert boundaries((1, 2, 3, 4, 5), 0.025) == pytest.approx(
        (2.438, 2.427, 2.410, 2.397, 2.386), abs=0.001
    )


@pytest.mark.parametrize("looks", [(5,), (5, 8, 12, 15), (5, 10, 15, 20), (3, 4)])
def test_equal_candidates_differ_in_five_of_a_hundred_however_many_looks(
    looks: tuple[int, ...],
) -> None:
    logs = np.random.default_rng(1).standard_normal((40_000, looks[-1]))
    differ = np.zeros(len(logs), bool)
    for look, level in zip(looks, levels(looks, 0.025), strict=True):
        part = logs[:, :look]
        score = part.mean(axis=1) / part.std(axis=1, ddof=1) * math.sqrt(look)
        differ |= np.abs(score) > t.isf(level, look - 1)
    assert differ.mean() == pytest.approx(0.05, abs=0.004)


def test_looks_are_at_most_four_and_end_at_the_budget() -> None:
    assert planned_looks(5, 20) == (5, 10, 15, 20)
    assert planned_looks(5, 7) == (5, 6, 7)
    assert planned_looks(5, 5) == planned_looks(5, 3) == (5,)


def test_the_lower_end_decides_not_the_estimate() -> None:
    assert faster(FLAT, times(1.10, FLAT), 0.05).verdict == "shown"
    assert faster(FLAT, times(1.02, FLAT), 0.05).verdict == "refuted"
    noisy = [run * wobble for run, wobble in zip(FLAT, (1.2, 1.0, 1.15, 0.98, 1.22), strict=True)]
    claim = faster(FLAT, noisy, 0.05)
    assert (claim.verdict, round(claim.estimate, 2)) == ("undecided", 0.11)
    assert claim.needed
    assert claim.low < 0.05 < claim.high
    assert "5 repeats" in claim.why


def test_what_is_needed_decides_when_it_is_there() -> None:
    noise = np.random.default_rng(3).standard_normal(5)
    noise = (noise - noise.mean()) / noise.std(ddof=1)

    def claim(blocks: int) -> str:
        logs = np.resize(noise, blocks) * 0.1 + math.log(1.12)
        return faster([1.0] * blocks, [*np.exp(logs)], 0.05, looks=(blocks,)).verdict

    needed = faster([1.0] * 5, [*np.exp(noise * 0.1 + math.log(1.12))], 0.05).needed
    assert needed
    assert claim(math.ceil(needed / 5) * 5) == "shown"
    assert claim(max(5, needed // 10 * 5)) == "undecided"


def test_an_equal_one_is_not_faster_though_nothing_more_was_asked() -> None:
    assert faster(FLAT, FLAT, 0.0).verdict != "shown"


def test_before_the_first_look_and_between_two_nothing_more_is_known() -> None:
    better = times(1.10, FLAT)
    assert faster(FLAT[:4], better[:4], 0.05).verdict == "undecided"
    first = faster(FLAT, better, 0.05, looks=(5, 8))
    assert faster([*FLAT, 1.0], [*better, 500.0], 0.05, looks=(5, 8)) == first
    assert first.low < faster(FLAT, better, 0.05).low, "looking again is paid for"


@pytest.mark.parametrize("figure", [0.0, math.nan, math.inf])
def test_a_repeat_without_a_figure_proves_nothing(figure: float) -> None:
    claim = faster(FLAT, [*FLAT[:4], figure], 0.05)
    assert (claim.verdict, claim.needed) == ("undecided", None)


def test_a_tie_is_an_interval_within_one_percent() -> None:
    assert tied(FLAT, times(1.001, FLAT)).verdict == "shown"
    assert tied(FLAT, times(1.05, FLAT)).verdict == "refuted"
    assert tied(FLAT, times(1.01, FLAT)).verdict == "undecided"


def test_a_machine_that_became_slower_or_cannot_repeat_itself_is_not_steady() -> None:
    again = times(1.001, FLAT)
    assert drift(FLAT, again).steady
    slower = [1.0, 1.0, 0.95, 0.9, 0.9]
    slowed = drift(*([a * b for a, b in zip(runs, slower, strict=True)] for runs in (FLAT, again)))
    assert not slowed.steady
    assert slowed.change == pytest.approx(-0.1, abs=0.01)
    assert "slower meanwhile" in slowed.why
    assert "differs from itself" in drift(FLAT, times(1.03, FLAT)).why
    assert not drift(FLAT[:3], again[:3]).steady
    assert not drift(FLAT, [*again[:4], 0.0]).steady


def test_runs_too_noisy_to_exclude_a_drift_of_a_tenth_tell_nothing_of_the_machine() -> None:
    noisy = [80.0, 120.0, 100.0, 120.0, 80.0]
    again = [121.0, 81.0, 100.0, 79.0, 119.0]
    found = drift(noisy, again)
    assert abs(found.change or 1) < 0.03
    assert not found.steady
    assert "it is not known whether" in found.why
    assert "does not exclude a change of 10%" in found.why
    assert drift(noisy * 8, again * 8, looks=(40,)).steady


def test_a_machine_that_became_a_tenth_slower_is_recognised_however_noisy_its_runs_are() -> None:
    random = np.random.default_rng(2)
    slower = np.where(np.arange(5) < 2.5, 1.0, 0.9)[:, None]
    for noise in (0.02, 0.07, 0.15, 0.4):
        drawn = (slower * np.exp(random.normal(0, noise, (5, 3))) for _ in range(400))
        believed = sum(drift(*list(runs.T)[:2], [runs[:, 2]]).steady for runs in drawn)
        assert believed / 400 < 0.05


def test_what_ran_beside_the_reference_tells_of_the_machine_too() -> None:
    lucky = [1.0, 1.0, 1.0, 1.05, 1.05]
    assert not drift(lucky, lucky).steady
    assert drift(lucky, lucky, [FLAT, FLAT]).steady
    assert not drift(FLAT, FLAT, [[100, 100, 100, 100, 0]]).steady


@pytest.mark.parametrize(("fewest", "most"), [(5, 5), (5, 20), (10, 40)])
def test_what_a_plan_names_is_shown_four_times_in_five(fewest: int, most: int) -> None:
    looks, threshold = planned_looks(fewest, most), math.log1p(0.05)
    truth = math.log1p(resolution(0.1, fewest, most, 0.05))
    logs = np.random.default_rng(2).normal(truth, 0.1, (8_000, most))
    shown = np.zeros(len(logs), bool)
    for look, level in zip(looks, levels(looks, 0.025), strict=True):
        part = logs[:, :look]
        half = t.isf(level, look - 1) * part.std(axis=1, ddof=1) / math.sqrt(look)
        shown |= part.mean(axis=1) - half >= threshold
    assert shown.mean() == pytest.approx(0.8, abs=0.04)


def test_more_repeats_show_less() -> None:
    assert resolution(0.1, 5, 5, 0.05) == pytest.approx(0.24, abs=0.02)
    assert resolution(0.1, 5, 20, 0.05) == pytest.approx(0.13, abs=0.01)
