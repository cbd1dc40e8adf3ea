"""95 % confidence intervals of a score."""

import math
from typing import TYPE_CHECKING, Any

from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.statistics import proportions, resampling
from weighbridge.tasks.statistics.rows import (
    figure_of,
    follows_from_rows,
    is_right_or_wrong,
    summands,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ALPHA = 0.05
Z = proportions.normal_quantile(ALPHA)

_BOUNDS = {"mean": (-math.inf, math.inf), "exponential": (0.0, math.inf), "bleu": (0.0, 100.0)}


def with_interval(score: Score) -> Score:
    """Return the score with the interval that its rows, their weights and their clusters give.

    Shares between 0 and 1 have Wilson's, everything else that of random halves (see
    `weighbridge.tasks.statistics.resampling`). A figure that is not the mean of its rows, as one of
    a whole corpus, has the spread of that mean around itself; without rows it keeps what it has.
    """
    if not follows_from_rows(score):
        return _around(score)
    sums = resampling.by_cluster(summands(score), score.clusters)
    if is_right_or_wrong(score) and not score.clusters:
        low, high = proportions.wilson(sum(score.per_example), len(score.per_example), Z)
    elif score.figure == "mean" and not score.weights and _is_share(score):
        low, high = _of_share(sums)
    else:
        low, high = resampling.interval(sums, figure_of(score), ALPHA)
        least, most = _BOUNDS[score.figure]
        low, high = max(low, least), min(high, most)
    return score.model_copy(update={"low": low, "high": high})


def _around(score: Score) -> Score:
    """Return the score with the spread of its rows' mean around its own value."""
    if not score.per_example or score.figure != "mean" or score.weights:
        return score
    mean = math.fsum(score.per_example) / len(score.per_example)
    if not (math.isfinite(mean) and math.isfinite(score.value)):
        return score
    rows = with_interval(score.model_copy(update={"value": mean}))
    ends = {"low": score.value - (mean - rows.low), "high": score.value + (rows.high - mean)}
    return score.model_copy(update=ends)


def score_of(value: float, per_example: list[float], **parts: Any) -> Score:
    """Return a score with its interval; `parts` are further fields of `Score`."""
    score = Score(value=value, low=value, high=value, per_example=per_example, **parts)
    return with_interval(score)


def mean_score(per_example: list[float], *, greater_is_better: bool = True) -> Score:
    """Return the mean over rows, each of which stands by itself, with its interval."""
    value = math.fsum(per_example) / len(per_example)
    return score_of(value, per_example, greater_is_better=greater_is_better)


def _is_share(score: Score) -> bool:
    return all(0 <= row <= 1 for row in score.per_example)


def _of_share(sums: "NDArray[np.float64]") -> tuple[float, float]:
    """Return Wilson's interval of a mean of rows between 0 and 1, given each cluster's sums.

    It takes as many trials as would have the spread that was seen: E. L. Korn, B. I. Graubard,
    Confidence intervals for proportions with small expected number of positive counts estimated
    from survey data, Survey Methodology 24 (1998), 193-201.
    """
    total, rows = sums.sum(axis=0)
    share = float(total / rows)
    error = resampling.standard_error(sums, resampling.RATIO)
    if not error > 0:
        return proportions.wilson(share * len(sums), len(sums), Z)
    trials = share * (1 - share) / error**2
    # The spread itself is estimated, of as many clusters: Student's quantile.
    return proportions.wilson(
        share * trials, trials, proportions.student_quantile(ALPHA, len(sums) - 1)
    )
