"""What to try next, and who has won: a pure function of what was tried so far, so that a search
that was killed goes on as if it had not been.

First the defaults, then settings that together tell most about all of them, then what is worth
most to who is held to be the best: settings that may be better, and those that are not settled
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from weighbridge.tasks.search.feasibility import Feasibility
from weighbridge.tasks.search.kernel import Floats, Indexes
from weighbridge.tasks.search.knowledge_gradient import knowledge_gradient
from weighbridge.tasks.search.space import Space, key_of
from weighbridge.tasks.search.speed_model import Posterior, SpeedModel
from weighbridge.tasks.search.visits import Visit

SPREAD: Final = 0.75
"""Part of the budget that goes to settings which tell most about all others, at most: until as many
have worked as the main effects have parameters, or all were tried. Before, what the model holds to
be worth most is a guess.
"""
FINALISTS: Final = 4
HOPEFUL: Final = 150
"""Settings, those that may be the best, among which the visit that is worth most is looked for."""
DOUBT: Final = 3.0
"""Standard deviations by which a setting may be better than is thought of it."""
CAUTION: Final = 0.7
"""Standard deviations that are taken off: the winner is the best lower bound, since the largest of
noisy figures is mostly noise.
"""
TRIED_AT_ONCE: Final = 24
"""Settings among which the one that tells most is looked for."""
COMMON: Final = 0.5
"""Share of a round's variance that all rounds on one start have in common; see `replay.BETWEEN`."""
TIE: Final = 0.01
"""Part by which two settings may differ and count as the same."""


@dataclass(frozen=True)
class Standing:
    """What a search believes at one moment."""

    visited: Indexes
    """Settings that worked, one entry per visit."""
    failed: list[int]
    posterior: Posterior
    noise: Floats
    """Variance of the log of one round, by setting."""
    failing: Floats
    """How likely a setting fails."""

    @property
    def deviation(self) -> Floats:
        return np.sqrt(self.posterior.variance)

    def lower(self, caution: float = CAUTION) -> Floats:
        """Return the cautious log speed of every setting that worked each time; others are out.

        Where none did, of those that worked at all.
        """
        bounds = np.full(len(self.noise), -np.inf)
        worked = self.visited[~np.isin(self.visited, self.failed)]
        trusted = worked if len(worked) else self.visited
        bounds[trusted] = (self.posterior.mean - caution * self.deviation)[trusted]
        return bounds


class Strategy:
    """Decides over one space."""

    def __init__(self, space: Space, seed: int) -> None:
        codes = space.codes()
        self.space = space
        self.seed = seed
        self._model = SpeedModel(codes)
        self._feasibility = Feasibility(codes)
        self._numbers = {key_of(setting): number for number, setting in enumerate(space.settings)}

    def next(self, visits: Sequence[Visit], used: float) -> int:
        """Return the number of the setting to visit.

        Args:
            visits: everything that was tried, in order.
            used: part of the budget that is used up.
        """
        untried = [number for number in self.space.defaults if not self._is_visited(number, visits)]
        if untried and len(visits) < len(self.space.defaults):
            return untried[0]
        worked = sum(visit.failure is None for visit in visits)
        are_left = len({self._number(visit) for visit in visits}) < len(self.space.settings)
        if are_left and worked < self._model.main_effects and used < SPREAD:
            generator = np.random.default_rng([self.seed, len(visits)])
            return self._telling(self.standing(visits, scales=False), visits, generator)
        return self._worthwhile(self.standing(visits))

    def standing(self, visits: Sequence[Visit], *, scales: bool = True) -> Standing:
        """Return what the visits say.

        Without `scales`, by the prior alone of how much options matter: a few visits that happen to
        agree must not hide an option whose values were hardly tried. How noisy values are is
        learned all the same, since visits to quiet ones tell more.
        """
        worked = [visit for visit in visits if visit.failure is None]
        visited = np.array([self._number(visit) for visit in worked], np.int64)
        failed = sorted({self._number(visit) for visit in visits if visit.failure is not None})
        logs = np.array([np.mean(visit.log_speeds()) for visit in worked])
        rounds = np.array([len(visit.repeats) for visit in worked], float)
        share = COMMON + (1 - COMMON) / np.maximum(rounds, 1)
        # From nothing each time: a search that goes on after a kill must think the same.
        self._model.learn(visited, logs, share)
        if not scales:
            self._model.forget_scales()
        noise = self._model.noise_variance()
        posterior = self._model.posterior(visited, logs, noise[visited] * share)
        failing = self._feasibility.failing(visited.tolist(), failed)
        return Standing(visited, failed, posterior, noise, failing)

    def winner(self, standing: Standing) -> int:
        """Return the setting with the best lower bound.

        Among those that are as good within TIE, the one with the fewest overrides of the defaults.
        """
        bounds = standing.lower()
        best = bounds.max()
        tied = np.flatnonzero(bounds >= best - TIE)
        return min(
            tied.tolist(), key=lambda number: (self.space.overrides(number), -bounds[number])
        )

    def finalists(self, standing: Standing) -> list[int]:
        """Return the best few of those that worked, and the best of the defaults."""
        bounds = standing.lower()
        ranked = [number for number in np.argsort(-bounds).tolist() if bounds[number] > -np.inf]
        chosen = ranked[:FINALISTS]
        defaults = [number for number in ranked if number in self.space.defaults]
        return chosen + [number for number in defaults[:1] if number not in chosen]

    def _unseen_values(self, visits: Sequence[Visit]) -> npt.NDArray[np.int64]:
        """Return by setting how many of its values no visit has shown at work."""
        codes = self._model.codes
        worked = [self._number(visit) for visit in visits if visit.failure is None]
        unseen = [~np.isin(column, column[worked]) for column in codes.T]
        counts: npt.NDArray[np.int64] = np.sum(unseen, axis=0)
        return counts

    def _telling(
        self, standing: Standing, visits: Sequence[Visit], generator: np.random.Generator
    ) -> int:
        """Return the setting whose visit takes most variance off all others; first among those
        with the most values that were not seen yet.
        """
        known = {*standing.visited.tolist(), *standing.failed}
        others = np.array([n for n in range(len(standing.noise)) if n not in known])
        some = generator.permutation(others)[:TRIED_AT_ONCE]
        everybody = np.arange(len(standing.noise))
        gain = (self._left(standing, some, everybody) ** 2).sum(1) / (
            standing.posterior.variance[some] + standing.noise[some]
        )
        new = 1 + self._unseen_values(visits)[some]
        return int(some[np.argmax(gain * new * (1 - standing.failing[some]))])

    def _worthwhile(self, standing: Standing) -> int:
        """Return the setting whose visit is worth most to who is held to be the best."""
        hope = standing.posterior.mean + DOUBT * standing.deviation
        hope[standing.failed] = -np.inf
        # The first of equals is taken: where nothing seems worth a visit, who may be the best.
        some = np.argsort(-hope)[: max(1, min(HOPEFUL, len(hope) - len(standing.failed)))]
        covariance = self._left(standing, some, some)
        gradient = knowledge_gradient(
            standing.posterior.mean[some], covariance, standing.noise[some]
        )
        return int(some[np.argmax(gradient * (1 - standing.failing[some]))])

    def _left(self, standing: Standing, some: Indexes, others: Indexes) -> Floats:
        """Return what the visits have left of the covariance of some settings with others."""
        reduction = standing.posterior.reduction
        taken_off = reduction[:, some].T @ reduction[:, others]
        left: Floats = self._model.covariance(some, others) - taken_off
        return left

    def _number(self, visit: Visit) -> int:
        return self._numbers[key_of(visit.setting)]

    def _is_visited(self, number: int, visits: Sequence[Visit]) -> bool:
        return any(self._number(visit) == number for visit in visits)
