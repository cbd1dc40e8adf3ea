"""Which scales and which noise make the visits of a search likeliest.

Noise is learned with the scales, by the same likelihood, and not from what is left over once the
model has been fitted: with twenty visits a fit follows the noise, and little is left over.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np

from weighbridge.tasks.search.kernel import Floats, Indexes, Noise, Scales, same_values

MAINS: Final = (0.01, 0.04, 0.15)
PAIRS: Final = (0.02, 0.1)
"""Variances of main effects, and of pairs as a part of their options' product, that are tried."""
ONE_OPTION: Final = (0.35, 5.0)
"""Factors by which one option's variance may differ from the others'."""
WORTH_IT: Final = 0.5
"""Log-likelihood that such a factor must gain."""
LEVELS: Final = (0.7, 1.0, 2.0, 4.0, 9.0)
"""Of the noise everywhere."""
LEAST_LEVEL: Final = 0.5
NOISIER: Final = (4.0, 12.0)
"""How many times the variance may be under one value."""
MOST_NOISY_VALUES: Final = 3
SWEEPS: Final = 2


@dataclass(frozen=True)
class Seen:
    """The visits of a search, as its model sees them."""

    codes: Indexes
    """Of the visited settings, one row per visit."""
    visited: Indexes
    """Their numbers."""
    logs: Floats
    """Log speeds about their mean."""
    share: Floats
    """Part of the variance of one round that the mean of a visit has."""

    @cached_property
    def _same(self) -> Floats:
        same: Floats = same_values(self.codes, self.codes).astype(np.float64)
        return same

    @cached_property
    def _itself(self) -> Floats:
        itself: Floats = (self.visited[:, None] == self.visited[None, :]).astype(np.float64)
        return itself

    def likeliest(self, scales: Scales, noise: Noise) -> tuple[Scales, Noise]:
        """Return what makes the visits likeliest, beginning with these."""
        for _ in range(SWEEPS):
            scales = self._common_scales(scales, noise)
            noise = self._noise(scales, noise)
            scales = self._scales_of_options(scales, noise)
        return scales, noise

    def _prior(self, scales: Scales) -> Floats:
        covariance: Floats = scales.shared(self._same) + scales.rest * self._itself
        return covariance

    def _score(self, prior: Floats, noise: Noise) -> float:
        """Return the log-likelihood of the visits, less what the noise costs."""
        covariance = prior.copy()
        covariance[np.diag_indices(len(self.logs))] += noise.variance(self.codes) * self.share
        factor = np.linalg.cholesky(covariance)
        whitened = np.linalg.solve(factor, self.logs)
        likelihood = -0.5 * whitened @ whitened - np.log(np.diag(factor)).sum()
        return float(likelihood) - noise.doubt

    def _common_scales(self, scales: Scales, noise: Noise) -> Scales:
        every = np.ones(self.codes.shape[1])
        tried = [Scales(main * every, pair) for main, pair in product(MAINS, PAIRS)]
        return max([scales, *tried], key=lambda one: self._score(self._prior(one), noise))

    def _scales_of_options(self, scales: Scales, noise: Noise) -> Scales:
        reached = self._score(self._prior(scales), noise)
        for option, factor in product(range(len(scales.main)), ONE_OPTION):
            main = scales.main.copy()
            main[option] *= factor
            other = replace(scales, main=main)
            if (found := self._score(self._prior(other), noise)) > reached + WORTH_IT:
                scales, reached = other, found
        return scales

    def _noise(self, scales: Scales, noise: Noise) -> Noise:
        """Return the likeliest level, with one value after another under which it is higher."""
        prior = self._prior(scales)
        levels = [replace(noise, level=level) for level in LEVELS]
        noise = max([noise, *levels], key=lambda one: self._score(prior, one))
        while len(noise.values) < MOST_NOISY_VALUES:
            best = max([noise, *self._noisier(noise)], key=lambda one: self._score(prior, one))
            if best == noise:
                break
            noise = best
        return noise

    def _noisier(self, noise: Noise) -> Iterator[Noise]:
        known = {(option, value) for option, value, _ in noise.values}
        for option, column in enumerate(self.codes.T):
            values = np.unique(column)
            for value, factor in product(values.tolist() if len(values) > 1 else [], NOISIER):
                if (option, value) in known:
                    continue
                values_now = (*noise.values, (option, value, factor))
                # Where many visits have the value, what looked like noise everywhere was its own.
                for level in (noise.level, noise.level / factor**0.5, noise.level / factor):
                    yield Noise(max(LEAST_LEVEL, level), values_now)
