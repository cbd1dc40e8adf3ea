"""What makes visits likeliest: which values are noisy, and how much options matter."""

import numpy as np

from tests.tasks.search import made
from weighbridge.tasks.search.kernel import BASE_NOISE
from weighbridge.tasks.search.speed_model import SpeedModel

CODES = np.array(made.space(made.grid()).codes())
NOISY = CODES[:, 0] == 2
"""Settings with the last number of threads."""


def learned(noise: float, seed: int) -> SpeedModel:
    """A model of 24 visits to settings whose threads add 0.5 each, under quiet runs but for one
    number of threads.
    """
    generator = np.random.default_rng(seed)
    visited = generator.permutation(len(CODES))[:24]
    spread = np.where(NOISY, noise, BASE_NOISE)[visited]
    logs = 0.5 * CODES[visited, 0] + spread * generator.normal(size=24)
    model = SpeedModel(CODES.tolist())
    model.learn(visited, logs, np.ones(24))
    return model


def test_a_value_under_which_runs_differ_more_is_found() -> None:
    ratios = []
    for seed in range(8):
        variance = learned(0.5, seed).noise_variance()
        ratios.append(variance[NOISY].mean() / variance[~NOISY].mean())
    assert np.median(ratios) > 4


def test_even_noise_is_mostly_left_even() -> None:
    found = [learned(BASE_NOISE, seed).noise for seed in range(8)]
    assert sum(not noise.values for noise in found) >= 6
    assert all(noise.level < 4 for noise in found)


def test_an_option_that_matters_gets_a_larger_scale_than_one_that_does_not() -> None:
    scales = [learned(BASE_NOISE, seed).scales.main for seed in range(8)]
    threads, *others = np.median(scales, axis=0)
    assert threads >= max(others)


def test_few_visits_say_nothing_of_noise_and_scales() -> None:
    model = SpeedModel(CODES.tolist())
    model.learn(np.array([0, 1, 2]), np.array([0.0, 5.0, 9.0]), np.ones(3))
    assert not model.noise.values
    assert len(set(model.scales.main)) == 1
