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
        self._same = same_values(self.codes)
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

    def covariance(self, some: Indexes) -> Floats:
        """Return the prior covariance of some settings with all."""
        cross = self.scales.shared(self._same[:, some])
        cross += self.scales.rest * (some[:, None] == np.arange(self.settings)[None, :])
        return cross
