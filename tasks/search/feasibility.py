"""Which settings will not work, learned from those that did not.

What makes a setting fail is nearly always one value of one option, or two values together: a value
cache of 8 bits without flash attention, a context that does not fit with so many slots.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MOST_LIKELY = 0.97
"""A guess never excludes a setting for good."""


class Feasibility:
    """Values and pairs of values of one space, each a possible reason of failures."""

    def __init__(self, codes: Sequence[Sequence[int]]) -> None:
        array = np.asarray(codes)
        values = [
            column == value for column in array.T for value in np.unique(column) if value >= 0
        ]
        pairs = [one & other for one, other in itertools.combinations(values, 2)]
        self._reasons = np.array([reason for reason in [*values, *pairs] if reason.any()])

    def failing(self, worked: Sequence[int], failed: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return by setting how likely it fails.

        A reason under which something has worked is none. Those left share each failure, by the
        square of how many failures they explain.
        """
        if not failed:
            return np.zeros(self._reasons.shape[1])
        explained = self._reasons[:, failed].sum(1)
        possible = (explained > 0) & ~self._reasons[:, worked].any(1)
        reasons = self._reasons[possible]
        weights = reasons[:, failed] * explained[possible, None].astype(float) ** 2
        shares = (weights / np.maximum(weights.sum(0), 1e-9)).max(1)
        likely: npt.NDArray[np.float64] = np.clip(shares @ reasons, 0.0, MOST_LIKELY)
        likely[list(failed)] = 1.0
        return likely
