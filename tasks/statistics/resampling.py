"""Bootstrap of figures over clusters: means, ratios such as nats per token, corpus BLEU.

Each of these figures is a smooth function of sums over rows: a mean of (score, 1), a ratio of
(weight * score, weight), BLEU of counts. So a resample of the rows is a weighted sum, and its
standard error follows from the function's gradient (the delta method).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

RESAMPLES = 2000
# Any fixed number: the same scores shall have the same interval in every run.
SEED = 20240229
AT_ONCE = 4_000_000
"""Numbers held at a time: rows times resamples would not fit for long tests."""


class Figure(NamedTuple):
    """A figure of sums over rows, for many sets of sums at once."""

    value: Callable[["Numbers"], "Numbers"]
    gradient: Callable[["Numbers"], "Numbers"]
    """Derivative by each sum, in the shape of the sums."""


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float
    error: float
    """Standard error of the estimate."""


def _ratio(sums: "Numbers") -> "Numbers":
    value: Numbers = sums[..., 0] / sums[..., 1]
    return value


def _ratio_gradient(sums: "Numbers") -> "Numbers":
    import numpy as np

    return np.stack([1 / sums[..., 1], -sums[..., 0] / sums[..., 1] ** 2], axis=-1)


RATIO = Figure(_ratio, _ratio_gradient)
"""Of the sums (weight * score, weight); a mean has weights of 1."""


def _exponential(sums: "Numbers") -> "Numbers":
    import numpy as np

    # e to the power of 710 is more than a float can hold.
    value: Numbers = np.exp(np.minimum(_ratio(sums), 700.0))
    return value


def _exponential_gradient(sums: "Numbers") -> "Numbers":
    return _exponential(sums)[..., None] * _ratio_gradient(sums)


EXPONENTIAL = Figure(_exponential, _exponential_gradient)
"""The exponential of a ratio: perplexity."""


def _bleu(sums: "Numbers") -> "Numbers":
    """Return BLEU as sacrebleu computes it of a corpus, with its exponential smoothing."""
    import numpy as np

    right, all_of, said, wanted = _bleu_parts(sums)
    none = (right == 0) & (all_of > 0)
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), right)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(all_of > 0, smoothed / all_of, 0.0)
        brevity = np.where(said < wanted, np.exp(1 - wanted / said), 1.0)
        scores = 100 * brevity * np.exp(np.log(precisions).mean(axis=-1))
    value: Numbers = np.where(right.any(axis=-1), np.nan_to_num(scores), 0.0)
    return value


def _bleu_gradient(sums: "Numbers") -> "Numbers":
    import numpy as np

    right, all_of, said, wanted = _bleu_parts(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_right = np.where(right > 0, 0.25 / right, 0.0)
        by_all = np.where(all_of > 0, -0.25 / all_of, 0.0)
        short = said < wanted
        by_said = np.where(short, wanted / said**2, 0.0)
        by_wanted = np.where(short, -1 / said, 0.0)
    logarithm = np.concatenate([by_right, by_all, by_said[..., None], by_wanted[..., None]], -1)
    gradient: Numbers = _bleu(sums)[..., None] * logarithm
    return gradient


def _bleu_parts(sums: "Numbers") -> tuple["Numbers", "Numbers", "Numbers", "Numbers"]:
    return sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]


BLEU = Figure(_bleu, _bleu_gradient)
"""Of the sums of right n-grams (n of 1 to 4), of all n-grams, and of both texts' lengths."""


def difference(figure: Figure, width: int) -> Figure:
    """Return the figure of the second `width` sums less that of the first ones."""
    import numpy as np

    def value(sums: "Numbers") -> "Numbers":
        changed: Numbers = figure.value(sums[..., width:]) - figure.value(sums[..., :width])
        return changed

    def gradient(sums: "Numbers") -> "Numbers":
        first, second = figure.gradient(sums[..., :width]), figure.gradient(sums[..., width:])
        return np.concatenate([-first, second], axis=-1)

    return Figure(value, gradient)


def by_cluster(rows: "Numbers", clusters: Sequence[str]) -> "Numbers":
    """Return the sums within clusters, one line each; without clusters the rows themselves."""
    import numpy as np

    if not clusters:
        return rows
    number_of = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    numbers = np.fromiter((number_of[name] for name in clusters), int, len(clusters))
    sums = np.zeros((len(number_of), rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def influence(sums: "Numbers", figure: Figure) -> "Numbers":
    """Return by how much each cluster moves the figure, to first order; they add up to 0."""
    moved: Numbers = sums @ figure.gradient(sums.sum(axis=0))
    moved -= moved.mean()
    return moved


def standard_error(moved: "Numbers") -> float:
    """Return the standard error of a figure, given its clusters' influence."""
    clusters = len(moved)
    return math.sqrt(float((moved**2).sum()) * clusters / (clusters - 1))


def bootstrap(sums: "Numbers", figure: Figure, alpha: float = 0.05) -> Interval:
    """Return the studentised bootstrap interval of a figure, with a fixed seed.

    `sums` has a line per cluster, which are drawn with replacement. B. Efron, R. J. Tibshirani, An
    Introduction to the Bootstrap (1993), section 12.5. The percentile interval covers too little
    below some hundred rows, and far too little where lengths vary much.
    """
    import numpy as np

    estimate = float(figure.value(sums.sum(axis=0)))
    if len(sums) < 2:
        return Interval(estimate, -math.inf, math.inf, math.inf)
    error = standard_error(influence(sums, figure))
    if not error > 0:
        return Interval(estimate, estimate, estimate, 0.0)
    low, high = np.quantile(_studentised(sums, figure, estimate), [alpha / 2, 1 - alpha / 2])
    return Interval(estimate, estimate - float(high) * error, estimate - float(low) * error, error)


def _studentised(sums: "Numbers", figure: Figure, estimate: float) -> "Numbers":
    """Return, for every resample, how many of its own standard errors it lies off."""
    import numpy as np

    generator = np.random.default_rng(SEED)
    clusters = len(sums)
    parts = []
    most = max(1, AT_ONCE // clusters)
    for start in range(0, RESAMPLES, most):
        count = min(most, RESAMPLES - start)
        times = generator.multinomial(clusters, np.full(clusters, 1 / clusters), count)
        drawn = times @ sums
        moved = figure.gradient(drawn) @ sums.T
        variances = (times * moved**2).sum(axis=1) * clusters / (clusters - 1)
        off = figure.value(drawn) - estimate
        with np.errstate(divide="ignore", invalid="ignore"):
            # A resample of one row over and over has no error of its own: as far off as can be.
            parts.append(np.where(off == 0, 0.0, off / np.sqrt(variances)))
    studentised: Numbers = np.concatenate(parts)
    return studentised
