"""Claims about two scores on the same rows: "better", and "not worse by more than a margin".

Rows are paired by their ids, never by their place, and only those that both scores have count.
Which method decides depends on the scores:

- right and wrong answers: McNemar's mid-p test for "better", Tango's score interval for "not
  worse";
- the same in clusters: the exact test of signs over the clusters' sums, of which McNemar's is the
  case of one row each, and Tango's interval over clusters, scaled to their spread;
- everything else (graded answers, ratios, corpus figures): the test of signs and its interval,
  by random halves of the clusters; where few differ, Tango's interval scaled to the differences;
- scores without ids, or whose rows don't tell the value: the intervals of the two, taken as
  independent (G. Y. Zou, A. Donner, Construction of confidence limits about effect measures,
  Statistics in Medicine 27 (2008), 1693-1702). On the same rows that is too wide, never too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.statistics import proportions, resampling
from weighbridge.tasks.statistics.rows import (
    Pairs,
    figure_of,
    follows_from_rows,
    is_right_or_wrong,
    pair,
    summands,
)
from weighbridge.tasks.statistics.sample_size import rows_for
from weighbridge.tasks.statistics.verdict import Claim, Verdict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FEW = 40
"""Clusters that differ, below which halves of them say too little of what has not been seen."""
ROUNDING = 1e-9
NAMED = 3
"""Ids of rows left out that are named."""


@dataclass(frozen=True)
class Comparison:
    """By how much the second score is better than the first, in the metric's unit."""

    estimate: float
    low: float
    high: float
    spread: float
    """Standard deviation of a row's difference, clusters accounted for; 0 where it is unknown."""
    rows: int
    p: float | None
    """Two-sided, of "no difference", where a test of its own decides that."""
    how: str
    """What was compared and by what, for people."""

    def differs(self, alpha: float) -> bool:
        """Whether the two are shown to differ, in whichever direction."""
        if self.p is None:
            return self.low > 0 or self.high < 0
        return self.p <= alpha


def better(champion: Score, challenger: Score, alpha: float = 0.05) -> Claim:
    """Claim that the challenger is better than the champion.

    The claim's figures say by how much, in the metric's unit; negative: it is worse. It is shown
    at the two-sided level `alpha`, and refuted where the challenger is shown to be worse.
    """
    compared = _compare(champion, challenger, alpha)
    if isinstance(compared, str):
        return _unknown(compared)
    verdict: Verdict = "undecided"
    if compared.differs(alpha):
        verdict = "shown" if compared.estimate > 0 else "refuted"
    return _claim(verdict, compared, compared.estimate, alpha)


def not_worse(reference: Score, score: Score, margin: float, alpha: float = 0.05) -> Claim:
    """Claim that `score` is not worse than `reference` by `margin` or more.

    The claim's figures say by how much it is better, as those of `better`. It is shown where the
    interval of level 1 - `alpha` lies above -`margin`, and refuted where it lies below.
    """
    compared = _compare(reference, score, alpha)
    if isinstance(compared, str):
        return _unknown(compared)
    verdict: Verdict = "undecided"
    if compared.low > -margin:
        verdict = "shown"
    elif compared.high < -margin:
        verdict = "refuted"
    return _claim(verdict, compared, compared.estimate + margin, alpha)


def spread(first: Score, second: Score) -> float | None:
    """Return the standard deviation of a row's difference between two scores; None where the two
    cannot be paired. Of right and wrong answers its square is the discordance.
    """
    compared = _compare(first, second, alpha=0.05)
    return None if isinstance(compared, str) or not compared.rows else compared.spread


def _unknown(why: str) -> Claim:
    return Claim(verdict="undecided", estimate=math.nan, low=-math.inf, high=math.inf, why=why)


def _claim(verdict: Verdict, compared: Comparison, effect: float, alpha: float) -> Claim:
    needed = None
    if verdict == "undecided" and effect and compared.spread:
        # More than there are: these were unlucky, or their power below the usual.
        needed = max(compared.rows + 1, rows_for(abs(effect), compared.spread, alpha))
    chance = "" if compared.p is None else f", mid-p {compared.p:.3g}"
    why = (
        f"{compared.estimate:+.4g} ({1 - alpha:.0%} interval {compared.low:+.4g} to "
        f"{compared.high:+.4g}{chance}): {compared.how}"
    )
    return Claim(
        verdict=verdict,
        estimate=compared.estimate,
        low=compared.low,
        high=compared.high,
        why=why.replace("%", " %", 1),
        how=compared.how,
        needed=needed,
    )


def _compare(first: Score, second: Score, alpha: float) -> Comparison | str:
    """Return the comparison by the method that fits, or why there is none."""
    if not (math.isfinite(first.value) and math.isfinite(second.value)):
        return "one of the two is not a number"
    if first.greater_is_better != second.greater_is_better or first.figure != second.figure:
        return "the two are not figures of one metric"
    if not (first.ids and second.ids):
        return _apart(first, second, "no ids of the rows are kept", alpha)
    if not (follows_from_rows(first) and follows_from_rows(second)):
        return _apart(first, second, "the figure cannot be computed of single rows", alpha)
    pairs = pair(first, second)
    if len(pairs.first) < 2:
        return _apart(first, second, f"{len(pairs.first)} rows in common", alpha)
    clusters = _clusters(first, second, pairs)
    if is_right_or_wrong(first) and is_right_or_wrong(second):
        return _of_right_and_wrong(first, second, pairs, clusters, alpha)
    return _of_figures(first, second, pairs, clusters, alpha)


def _clusters(first: Score, second: Score, pairs: Pairs) -> list[str]:
    if first.clusters:
        return [first.clusters[place] for place in pairs.first]
    return [second.clusters[place] for place in pairs.second] if second.clusters else []


def _apart(first: Score, second: Score, reason: str, alpha: float) -> Comparison | str:
    """Compare two scores by their own intervals, as if they had no row in common."""
    if not (first.low < first.high and second.low < second.high):
        return f"{reason}, and a score has no interval"
    sign = 1.0 if first.greater_is_better else -1.0
    estimate = second.value - first.value
    # The intervals that are kept are of 95 %.
    scale = proportions.normal_quantile(alpha) / proportions.normal_quantile(0.05)
    low = estimate - scale * math.hypot(second.value - second.low, first.high - first.value)
    high = estimate + scale * math.hypot(second.high - second.value, first.value - first.low)
    return Comparison(
        estimate=sign * estimate,
        low=min(sign * low, sign * high),
        high=max(sign * low, sign * high),
        spread=0.0,
        rows=0,
        p=None,
        how=f"not paired, by the two intervals: {reason}",
    )


def _of_right_and_wrong(
    first: Score, second: Score, pairs: Pairs, clusters: list[str], alpha: float
) -> Comparison:
    sign = 1 if first.greater_is_better else -1
    changes = [
        sign * int(second.per_example[there] - first.per_example[here])
        for here, there in zip(pairs.first, pairs.second, strict=True)
    ]
    rows, gained, lost = len(changes), changes.count(1), changes.count(-1)
    z = proportions.normal_quantile(alpha)
    how = f"right alone in {gained} rows, wrong alone in {lost} of {rows}"
    if not clusters:
        p = proportions.mcnemar_mid_p(gained, lost)
        low, high = proportions.tango(gained, lost, rows, z)
        spread = math.sqrt((gained + lost) / rows)
    else:
        sums: dict[str, int] = {}
        for name, change in zip(clusters, changes, strict=True):
            sums[name] = sums.get(name, 0) + change
        p = proportions.sign_flip_mid_p(list(sums.values()))
        shares = [number * len(sums) / rows for number in sums.values()]
        low, high = _scaled_tango(shares, 1.0, z)
        spread = math.sqrt(sum(share * share for share in shares) / len(sums) * rows / len(sums))
        how += f" in {len(sums)} clusters"
    estimate = (gained - lost) / rows
    return Comparison(estimate, low, high, spread, rows, p, how + _left_out(pairs))


def _of_figures(
    first: Score, second: Score, pairs: Pairs, clusters: list[str], alpha: float
) -> Comparison:
    import numpy as np

    sign = 1.0 if first.greater_is_better else -1.0
    before, after = summands(first)[pairs.first], summands(second)[pairs.second]
    width, rows = before.shape[1], len(before)
    sums = resampling.by_cluster(np.concatenate([before, after], axis=1), clusters)
    figure = resampling.difference(figure_of(first), width)
    estimate = float(figure.value(sums.sum(axis=0)))
    differing = int((sums[:, :width] != sums[:, width:]).any(axis=1).sum())
    how = f"{rows} rows" + (f" in {len(sums)} clusters" if clusters else "")
    if differing < FEW:
        # To first order: what each cluster adds to the difference, in the scale of their mean.
        shares = resampling.influence(sums, figure) * len(sums) + estimate
        # Where none differs, its last digits are no difference.
        low, high = _scaled_tango(
            shares.tolist() if differing else [0.0] * len(sums),
            _range(first, second),
            proportions.normal_quantile(alpha),
        )
        how += f", of which {differing} differ"
    else:
        low, high = resampling.interval(sums, figure, alpha)
    ends = sorted((sign * low, sign * high))
    return Comparison(
        estimate=sign * estimate,
        low=ends[0],
        high=ends[1],
        spread=resampling.standard_error(sums, figure) * math.sqrt(rows),
        rows=rows,
        p=_chance_of_parts(sums, figure, estimate),
        how=how + _left_out(pairs),
    )


def _chance_of_parts(sums: "Numbers", figure: resampling.Figure, estimate: float) -> float:
    """Return the two-sided mid-p value of "no difference": the test of signs, on random parts."""
    import numpy as np

    off = resampling.of_parts(sums, figure) * math.copysign(1.0, estimate)
    # Sums of equal numbers may differ in their last digits.
    none = np.abs(off) <= ROUNDING * np.abs(off).max()
    # A part without any cluster has no figure, and no difference.
    of_none = int(none.sum()) + resampling.PARTS - len(off)
    below = int(((off < 0) & ~none).sum())
    return min(1.0, 2 * (below + of_none / 2) / resampling.PARTS)


def _range(first: Score, second: Score) -> float:
    """Return how far apart two rows' scores lie at most, as far as was seen."""
    values = [*first.per_example, *second.per_example]
    return (max(values) - min(values)) or abs(first.value) or 1.0


def _scaled_tango(shares: Sequence[float], most: float, z: float) -> tuple[float, float]:
    """Return Tango's interval of the mean of clusters' differences that are no whole numbers.

    They are counted in units of sum(d²) / sum(|d|), in which as many whole differences would have
    the same mean and the same spread. Where none differs the unit is `most`.
    """
    size = math.fsum(abs(share) for share in shares)
    unit = math.fsum(share * share for share in shares) / size if size else most
    gained = math.fsum(share for share in shares if share > 0) / unit
    lost = -math.fsum(share for share in shares if share < 0) / unit
    low, high = proportions.tango(gained, lost, len(shares), z)
    return unit * low, unit * high


def _left_out(pairs: Pairs) -> str:
    alone = [*pairs.only_first, *pairs.only_second]
    if not alone:
        return ""
    more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
    return f"; left out, in one of them alone: {', '.join(alone[:NAMED])}{more}"
