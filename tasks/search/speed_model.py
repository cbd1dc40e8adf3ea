"""A model of log speed over a space: what every option, every pair of options and every setting by
itself adds, learned from a few noisy visits.

A Gaussian process whose kernel is the sum of main effects, of pairs and of a remainder, as in a
functional analysis of variance (Durrande et al. 2013, "ANOVA kernels and RKHS of zero mean
functions"). Main effects are in its prior the largest: with 21 visits to 216 settings they are all
that can be learned, and pairs are learned as visits come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from weighbridge.tasks.search.kernel import MAIN, Floats, Indexes, Noise, Scales, same_values
from weighbridge.tasks.search.likelihood import Seen

FEWEST: Final = 4
"""Visits from which on they say anything of scales and noise."""


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
        self.main_effects = 1 + sum(len(np.unique(column)) - 1 for column in self.codes.T)
        """Parameters of a model in which every option adds its own part, and nothing else does."""
        self.forget()

    def forget(self) -> None:
        """Take the prior scales and an even noise again."""
        self.forget_scales()
        self.noise = Noise()

    def forget_scales(self) -> None:
        """Take the prior scales again."""
        self.scales = Scales(np.full(self.options, MAIN))

    def learn(self, visited: Indexes, logs: Floats, share: Floats) -> None:
        """Choose the scales and the noise under which the visits are likeliest."""
        self.forget()
        if len(visited) >= FEWEST:
            seen = Seen(self.codes[visited], visited, logs - logs.mean(), share)
            self.scales, self.noise = seen.likeliest(self.scales, self.noise)

    def noise_variance(self) -> Floats:
        """Return the variance of the log of one round at every setting."""
        return self.noise.variance(self.codes)

    def posterior(self, visited: Indexes, logs: Floats, noise: Floats) -> Posterior:
        """Return what visits to these settings say of all of them."""
        prior = self.scales.total()
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

    def covariance(self, some: Indexes, others: Indexes | None = None) -> Floats:
        """Return the prior covariance of some settings with others, by default with all.

        Not kept for all pairs: of 20,000 settings with seven options these take 11 GB.
        """
        others = np.arange(self.settings) if others is None else others
        cross = self.scales.shared(same_values(self.codes[some], self.codes[others]))
        cross += self.scales.rest * (some[:, None] == others[None, :])
        return cross
