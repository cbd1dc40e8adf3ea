"""What a search could reach at most: it knows what it is told, and nothing else."""

import numpy as np
import pytest

from benchmarks.search_bounds import laws, told_the_best, told_the_laws
from tests.tasks.search import made
from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.replay import Replay
from weighbridge.tasks.search.visits import GridPoint

POINTS = made.grid()


def pair(gap: float, noise: float) -> list[GridPoint]:
    """Two settings, one of them faster by a share, and one that is far behind."""
    return [
        GridPoint(
            setting={"threads": threads},
            start_seconds=0.0,
            run_seconds=1.0,
            repeats=[[speed]],
            noise=noise,
        )
        for threads, speed in ((1, 100.0), (2, 100 * (1 + gap)), (3, 10.0))
    ]


def test_without_noise_who_is_told_the_best_few_finds_the_best() -> None:
    assert told_the_best(Replay(pair(0.1, 1e-6)), 2, seconds=4, draws=200).min() == 1.0


def test_who_is_told_two_errs_as_often_as_their_repeats_do() -> None:
    # 8 visits to each: their means differ by log(1.1), give or take 0.2 * sqrt(2 / 8).
    shares = told_the_best(Replay(pair(0.1, 0.2)), 2, seconds=16, draws=4000)
    assert np.mean(shares < 1) == pytest.approx(0.17, abs=0.02)


def test_in_no_time_one_of_those_told_is_taken_at_random() -> None:
    shares = told_the_best(Replay(pair(0.1, 0.2)), 2, seconds=0, draws=4000)
    assert np.mean(shares < 1) == pytest.approx(0.5, abs=0.03)


def test_more_to_tell_apart_is_harder_and_more_seconds_make_it_easier() -> None:
    replay = Replay(made.grid(noise=0.1))
    few, many = (told_the_best(replay, count, seconds=30).mean() for count in (4, 16))
    assert few > many
    assert told_the_best(replay, 16, seconds=120).mean() > many


def test_the_laws_of_a_grid_say_which_options_matter_and_how_noisy_each_setting_is() -> None:
    space, replay = made.space(POINTS), Replay(POINTS)
    scales, noise = laws(space, replay)
    main = dict(zip(space.choices(), scales.main, strict=True))
    assert max(main, key=lambda name: main[name]) == "threads"
    for point, variance in zip(POINTS, noise, strict=True):
        assert point.failure or variance == pytest.approx(point.noise**2)


def test_who_is_told_the_laws_searches_as_the_product_does() -> None:
    space = made.space(POINTS)
    scales, noise = laws(space, Replay(POINTS))
    shares = [
        told_the_laws(space, Replay(POINTS, seed), scales, noise, Budget(trials=18))
        for seed in range(5)
    ]
    # The best but one has 0.90, the median 0.62.
    assert np.mean(shares) > 0.92
