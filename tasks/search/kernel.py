"""What is believed of log speeds before anything is seen: how much options, pairs of them and
single settings matter, and how much runs of one setting differ.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indexes = npt.NDArray[np.int64]

BASE_NOISE: Final = 0.12
"""Standard deviation of the log of one short run before anything is known: runs of 0.6 s of the
same setting on a quiet machine spread by a tenth.
"""
MAIN: Final = 0.04
"""Prior variance of the main effect of an option."""
REST: Final = 0.0025
"""Prior variance of one setting by itself."""
OFFSET: Final = 4.0
"""Prior variance of the mean of all speeds: as good as unknown."""
LEVEL_DOUBT: Final = 0.5
"""Log-likelihood that it costs to have a noise e times as large everywhere, in variance."""
VALUE_DOUBT: Final = 1.5
"""The same, of one value under which it is another than elsewhere."""


@dataclass(frozen=True)
class Scales:
    """Prior variances of the log of speed."""

    main: Floats
    """By option."""
    pair: float = 0.05
    """Of a pair, as a part of the product of the standard deviations of its options."""
    rest: float = REST
    """Of one setting by itself."""

    def total(self) -> float:
        """Return the variance of one setting."""
        pairs = (np.sqrt(self.main).sum() ** 2 - self.main.sum()) / 2
        return float(self.main.sum() + self.pair * pairs + self.rest + OFFSET)

    def shared(self, same: npt.NDArray[np.floating[Any]]) -> Floats:
        """Return the covariance of settings out of which values they share, by option.

        What pairs share is the product of what their options share; the sum over all pairs follows
        from the square of the sum over options.
        """
        flat = same.reshape(len(same), -1)
        mains = self.main @ flat
        pairs = ((np.sqrt(self.main) @ flat) ** 2 - mains) / 2
        combined: Floats = (mains + self.pair * pairs + OFFSET).reshape(same.shape[1:])
        return combined


@dataclass(frozen=True)
class Noise:
    """How much runs differ: beside other work, those with more threads than cores several times as
    much.
    """

    level: float = 1.0
    """As a multiple of the variance BASE_NOISE squared."""
    values: tuple[tuple[int, int, float], ...] = ()
    """Values under which the variance is so many times that: option, value, factor."""

    def variance(self, codes: Indexes) -> Floats:
        """Return the variance of the log of one round at each of these settings."""
        variance = np.full(len(codes), self.level * BASE_NOISE**2)
        for option, value, factor in self.values:
            variance[codes[:, option] == value] *= factor
        return variance

    @property
    def doubt(self) -> float:
        """How much less likely it is beforehand than an even noise as it usually is."""
        return LEVEL_DOUBT * math.log(self.level) ** 2 + VALUE_DOUBT * len(self.values)


def same_values(codes: Indexes, others: Indexes) -> npt.NDArray[np.float32]:
    """Return by option which of some settings have the same value of it as which others."""
    equal: npt.NDArray[np.bool_] = codes.T[:, :, None] == others.T[:, None, :]
    return equal.astype(np.float32)
