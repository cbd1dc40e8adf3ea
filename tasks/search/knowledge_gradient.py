"""What one more visit is worth: by how much the best that is believed of any setting is expected to
rise when the visit has told what it tells, of its own setting and of all others.

P. Frazier, W. Powell, S. Dayanik, The knowledge-gradient policy for correlated normal beliefs,
INFORMS Journal on Computing 21 (2009), 599-613. It weighs trying what is not known against
repeating what is not settled, with no constant for either: a visit to a noisy setting tells less,
and one that cannot change who is the best tells nothing.
"""

from typing import Final

import numpy as np

from weighbridge.tasks.search.kernel import Floats

_SCORES: Final = np.linspace(-4, 4, 33)
_DENSITY: Final = np.exp(-(_SCORES**2) / 2)
_WEIGHTS: Final = _DENSITY / _DENSITY.sum()


def knowledge_gradient(mean: Floats, covariance: Floats, noise: Floats) -> Floats:
    """Return by how much the highest mean is expected to rise by a visit to each setting.

    Args:
        mean: what is believed of each setting.
        covariance: of these beliefs.
        noise: variance of what a visit to each shows.
    """
    # By row, how a visit moves the beliefs where it shows one standard deviation more than thought.
    moved = covariance / np.sqrt(np.diag(covariance) + noise)[:, None]
    highest = np.zeros(len(mean))
    for score, weight in zip(_SCORES, _WEIGHTS, strict=True):
        highest += weight * (mean + score * moved).max(axis=1)
    gradient: Floats = highest - mean.max()
    return gradient
