"""What a search could reach at most on a recorded grid, with the same seconds and the same noise.

Two searchers who know beforehand what none can know. One is told which settings are the best few,
but not which of them is which, and has only to tell them apart by repeats: a search that has found
them at no cost is where it begins. The other is told the laws, but no speed: how much each option,
pairs of them and single settings matter over the whole grid, and how noisy each is.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.stats import norm

from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.kernel import MAIN, REST, Floats, Scales, same_values
from weighbridge.tasks.search.replay import Replay
from weighbridge.tasks.search.space import Space
from weighbridge.tasks.search.speed_model import SpeedModel
from weighbridge.tasks.search.strategy import Strategy
from weighbridge.tasks.search.visits import Question, Visit

SHORTLISTS: Final = (4, 8, 16)
DRAWS: Final = 2000


def told_the_best(replay: Replay, count: int, seconds: float, draws: int = DRAWS) -> Floats:
    """Return, of many draws, the true speed of what somebody takes who is told the best `count`
    settings in no order, over that of the best.

    Their mean and spread are known too. Each visit goes where it is worth most, by the knowledge
    gradient of independent beliefs (Frazier, Powell, Dayanik 2008), and the highest mean is taken.
    """
    best = sorted(replay.points.values(), key=lambda point: -replay.truth(point.setting))[:count]
    truths = np.array([replay.truth(point.setting) for point in best])
    noises = np.array([replay.noise(point.setting) for point in best]) ** 2
    visits = int(seconds / np.mean([point.seconds for point in best]))
    random = np.random.default_rng(count)
    # Shuffled in each draw, or else the first of equals would be the best one.
    order = random.permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    truth, noise, every = truths[order], noises[order], np.arange(draws)
    mean = np.full((draws, count), truths.mean())
    variance = np.full((draws, count), truths.var())
    for _ in range(visits):
        chosen = _worth(mean, variance, noise).argmax(axis=1)
        at = (every, chosen)
        shown = truth[at] + np.sqrt(noise[at]) * random.normal(size=draws)
        gain = variance[at] / (variance[at] + noise[at])
        mean[at] += gain * (shown - mean[at])
        variance[at] *= 1 - gain
    shares: Floats = np.exp(truth[every, mean.argmax(axis=1)] - truths.max())
    return shares


def _worth(mean: Floats, variance: Floats, noise: Floats) -> Floats:
    """Return by how much the highest mean is expected to rise by a visit to each."""
    ranked = np.sort(mean, axis=1)
    highest, second = ranked[:, -1:], ranked[:, -2:-1]
    moved = variance / np.sqrt(variance + noise)
    score = -np.abs(mean - np.where(mean == highest, second, highest)) / moved
    worth: Floats = moved * (score * norm.cdf(score) + norm.pdf(score))
    return worth


class ToldLaws(Strategy):
    """The product's search, with laws that it need not learn."""

    def __init__(self, space: Space, seed: int, scales: Scales, noise: Floats) -> None:
        super().__init__(space, seed)
        self._model = _Told(space.codes(), scales, noise)


class _Told(SpeedModel):
    def __init__(self, codes: Sequence[Sequence[int]], scales: Scales, noise: Floats) -> None:
        self._told = scales
        self._noise = noise
        super().__init__(codes)

    def forget_scales(self) -> None:
        self.scales = self._told

    def learn(self, visited: Any, logs: Any, share: Any) -> None:
        self.forget()

    def noise_variance(self) -> Floats:
        return self._noise


def laws(space: Space, replay: Replay) -> tuple[Scales, Floats]:
    """Return the scales under which all true speeds of a grid are likeliest, and the variance of
    one round at every setting.
    """
    truths = np.array([replay.truth(setting) for setting in space.settings])
    worked = np.isfinite(truths)
    codes = np.asarray(space.codes(), np.int64)[worked]
    same = same_values(codes, codes).astype(np.float64)
    logs = truths[worked] - truths[worked].mean()

    def unlikely(logarithms: npt.NDArray[np.float64]) -> float:
        scales = _scales(logarithms)
        covariance = scales.shared(same) + (scales.rest + 1e-8) * np.eye(len(logs))
        factor = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(factor, logs)
        return float(whitened @ whitened / 2 + np.log(np.diag(factor)).sum())

    first = Scales(np.full(len(same), MAIN))
    found = minimize(
        unlikely,
        np.log([*first.main, first.pair, REST]),
        method="L-BFGS-B",
        bounds=[(-12.0, 2.0)] * len(same) + [(-6.0, 2.0), (-14.0, -2.0)],
    )
    noise = np.array([replay.noise(setting) for setting in space.settings])
    return _scales(found.x), noise**2


def _scales(logarithms: npt.NDArray[np.float64]) -> Scales:
    *main, pair, rest = np.exp(logarithms).tolist()
    return Scales(np.array(main), pair, rest)


def told_the_laws(
    space: Space, replay: Replay, scales: Scales, noise: Floats, budget: Budget
) -> float:
    """Return the true speed of what the product's search takes where it is told the laws, over that
    of the best.
    """
    strategy = ToldLaws(space, replay.seed, scales, noise)
    visits: list[Visit] = []
    while not visits or budget.allows(visits):
        number = strategy.next(visits, budget.used(visits))
        visits.append(replay(Question(space.settings[number], 1, len(visits))))
    taken = space.settings[strategy.winner(strategy.standing(visits))]
    best = max(replay.truth(setting) for setting in space.settings)
    return math.exp(replay.truth(taken) - best)
