"""A model of log speed over a space: what every option, every pair of options and every setting by
itself adds, learned from a few noisy visits.

A Gaussian process whose kernel is the sum of main effects, of pairs and of a remainder, as in a
functional analysis of variance (Durrande et al. 2013, "ANOVA kernels and RKHS of zero mean
functions"). Main effects are in its prior the largest: with 21 visits to 216 settings they are all
that can be learned, and pairs are learned as visits come.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]

BASE_NOISE: Final = 0.12
"""Standard deviation of the log of one short run before anything is known: runs of 0.6 s of the
same setting on a quiet machine spread by a tenth.
"""
PRIOR_ROUNDS: Final = 6.0
"""Rounds' worth of BASE_NOISE that the noise of an option's value is mixed with."""
NOISE_RANGE: Final = (0.6, 16.0)
"""Least and most of such a factor: a few visits that agree by chance don't show that there is no
noise.
"""
REST: Final = 0.0025
"""Prior variance of one setting by itself."""
OFFSET: Final = 4.0
"""Prior variance of the mean of all speeds: as good as unknown."""
MAIN: Final = (0.01, 0.04, 0.15)
PAIR: Final = (0.02, 0.1)
"""Variances of main effects, and of pairs as a part of their options' product, among which the
likelihood chooses.
"""
ONE_OPTION: Final = (0.35, 5.0)
"""Factors by which one option's variance may differ from the others'."""
FEWEST: Final = 4
"""Visits from which on the likelihood says anything of scales."""
WORTH_IT: Final = 0.5
"""Log-likelihood that such a factor must gain."""


@dataclass(frozen=True)
class Scales:
    """Prior variances of the log of speed."""

    main: Floats
    """By option."""
    pair: float = 0.05
    """Of a pair, as a part of the product of the standard deviations of its options."""
    rest: float = REST
    """Of one setting by itself."""


@dataclass(frozen=True)
class Posterior:
    """What is believed of every setting of the space."""

    mean: Floats
    variance: Floats
    reduction: Floats
    """Factor whose product with itself is what the visits took off the prior covariance."""


class SpeedModel:
    """The kernel over one space, and what follows from visits to it."""

    def __init__(self, codes: Sequence[Sequence[int]]) -> None:
        self.codes = np.asarray(codes, np.int64)
        self.settings, self.options = self.codes.shape
        # By option, which settings have the same value of it.
        self._same = np.array(
            [column[:, None] == column[None, :] for column in self.codes.T], np.float32
        )
        self.forget()

    def forget(self) -> None:
        """Take the prior scales again."""
        self.scales = Scales(np.full(self.options, MAIN[1]))

    def learn_scales(self, visited: Indexes, logs: Floats, noise: Floats) -> None:
        """Choose the prior variances under which the visits are likeliest."""
        self.forget()
        if len(visited) < FEWEST:
            return
        same = self._same[:, visited][:, :, visited]
        itself = (visited[:, None] == visited[None, :]).astype(float)

        def likelihood(scales: Scales) -> float:
            covariance = _combine(same, scales) + scales.rest * itself
            covariance[np.diag_indices(len(logs))] += noise
            factor = np.linalg.cholesky(covariance)
            whitened = np.linalg.solve(factor, logs - logs.mean())
            return float(-0.5 * whitened @ whitened - np.log(np.diag(factor)).sum())

        candidates = [Scales(np.full(self.options, main), pair) for main in MAIN for pair in PAIR]
        best = max(candidates, key=likelihood)
        reached = likelihood(best)
        for option in range(self.options):
            for factor in ONE_OPTION:
                main = best.main.copy()
                main[option] *= factor
                other = replace(best, main=main)
                if (found := likelihood(other)) > reached + WORTH_IT:
                    best, reached = other, found
        self.scales = best

    def posterior(self, visited: Indexes, logs: Floats, noise: Floats) -> Posterior:
        """Return what visits to these settings say of all of them."""
        prior = self._prior_variance()
        if not len(visited):
            return Posterior(
                np.zeros(self.settings), np.full(self.settings, prior), np.zeros((1, self.settings))
            )
        cross = self.covariance(visited)
        covariance = cross[:, visited]
        covariance[np.diag_indices(len(logs))] += noise
        factor = np.linalg.cholesky(covariance)
        reduction = np.linalg.solve(factor, cross)
        whitened = np.linalg.solve(factor, logs - logs.mean())
        return Posterior(
            reduction.T @ whitened + logs.mean(),
            np.maximum(prior - (reduction**2).sum(0), 1e-9),
            reduction,
        )

    def covariance(self, some: Indexes) -> Floats:
        """Return the prior covariance of some settings with all."""
        cross = _combine(self._same[:, some], self.scales)
        cross += self.scales.rest * (some[:, None] == np.arange(self.settings)[None, :])
        return cross

    def noise(self, visited: Indexes, squares: Floats) -> Floats:
        """Return the variance of one round at every setting.

        Noise is not even: with more threads than cores, runs differ several times as much. So each
        value of an option has a factor, learned from how far visits with it lie from the model.

        Args:
            visited: settings that were visited.
            squares: squared distance of each visit from the model.
        """
        factors = np.ones(self.settings)
        relative = squares / BASE_NOISE**2
        for column in self.codes.T:
            for value in np.unique(column[visited]):
                seen = column[visited] == value
                factor = (PRIOR_ROUNDS + relative[seen].sum()) / (PRIOR_ROUNDS + seen.sum())
                factors[column == value] *= factor
        return BASE_NOISE**2 * np.clip(factors, *NOISE_RANGE)

    def _prior_variance(self) -> float:
        scales = self.scales
        pairs = (np.sqrt(scales.main).sum() ** 2 - scales.main.sum()) / 2
        return float(scales.main.sum() + scales.pair * pairs + scales.rest + OFFSET)


def _combine(same: npt.NDArray[np.float32], scales: Scales) -> Floats:
    """Return the covariance of settings out of which values they share.

    What pairs share is the product of what their options share; the sum over all pairs follows
    from the square of the sum over options.
    """
    flat = same.reshape(len(same), -1)
    mains = scales.main @ flat
    pairs = ((np.sqrt(scales.main) @ flat) ** 2 - mains) / 2
    combined: Floats = (mains + scales.pair * pairs + OFFSET).reshape(same.shape[1:])
    return combined
