"""What to try next, and who has won: a pure function of what was tried so far, so that a search
that was killed goes on as if it had not been.

First the defaults, then settings that together tell most about all of them, then those of which
the model thinks most with what it does not know, and with the rest of the budget the best few
again and again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from weighbridge.tasks.search.feasibility import Feasibility
from weighbridge.tasks.search.kernel import Floats, Indexes
from weighbridge.tasks.search.space import Space, key_of
from weighbridge.tasks.search.speed_model import Posterior, SpeedModel
from weighbridge.tasks.search.visits import Visit

# Chosen by `python -m benchmarks.search`, on the recorded grids.
SPREAD: Final = 0.75
"""Part of the budget that goes to settings which tell most about all others. What a value adds is
learned best where runs differ little, and holds where they differ much.
"""
FINAL: Final = 0.1
"""Part of the budget that goes to repeating the best few."""
FINALISTS: Final = 4
DOUBT: Final = 2.0
"""Standard deviations that are added to what the model thinks of a setting it has not settled."""
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
        """Return the cautious log speed of every setting that worked; others are out."""
        bounds = np.full(len(self.noise), -np.inf)
        bounds[self.visited] = (self.posterior.mean - caution * self.deviation)[self.visited]
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
        generator = np.random.default_rng([self.seed, len(visits)])
        if used < SPREAD:
            return self._telling(self.standing(visits, scales=False), visits, generator)
        standing = self.standing(visits)
        if used < 1 - FINAL:
            return self._promising(standing)
        return self._unsettled(standing)

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
        others = np.array([n for n in range(len(standing.noise)) if n not in known] or [0])
        some = generator.permutation(others)[:TRIED_AT_ONCE]
        reduction = standing.posterior.reduction
        left = self._model.covariance(some) - reduction[:, some].T @ reduction
        gain = (left**2).sum(1) / (standing.posterior.variance[some] + standing.noise[some])
        new = 1 + self._unseen_values(visits)[some]
        return int(some[np.argmax(gain * new * (1 - standing.failing[some]))])

    def _promising(self, standing: Standing) -> int:
        """Return the setting that may be the best, by what is known and what is not."""
        hope = standing.posterior.mean + DOUBT * standing.deviation
        return int(np.argmax(hope + _discount(standing)))

    def _unsettled(self, standing: Standing) -> int:
        """Return the finalist that may yet be the best."""
        bounds = standing.posterior.mean - CAUTION * standing.deviation + _discount(standing)
        best = np.argsort(-bounds)[:FINALISTS]
        hope = standing.posterior.mean + standing.deviation
        return int(best[np.argmax(hope[best])])

    def _number(self, visit: Visit) -> int:
        return self._numbers[key_of(visit.setting)]

    def _is_visited(self, number: int, visits: Sequence[Visit]) -> bool:
        return any(self._number(visit) == number for visit in visits)


def _discount(standing: Standing) -> Floats:
    """Return what a setting's hope loses because it may fail; what has failed is out."""
    discount: npt.NDArray[np.float64] = np.log(np.maximum(1 - standing.failing, 1e-3))
    discount[standing.failed] = -np.inf
    return discount
