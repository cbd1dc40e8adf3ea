"""Is a latency limit kept? By MLPerf's early stopping, with what would decide it.

The rule: https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc, "Early
stopping": a percentile is within its limit when I(p; h, t + 1) <= 1 - c, with h requests within the
limit and t beyond, I the regularized incomplete beta function. The interval of the share is that of
Clopper and Pearson (Biometrika 26, 1934).
"""

import bisect

from weighbridge.core.formatting import human_seconds
from weighbridge.serving.latencies import Latencies
from weighbridge.serving.quantiles import CONFIDENCE, Decided, decide, requests_to_decide
from weighbridge.tasks.statistics.verdict import Claim, Verdict

_VERDICTS: dict[Decided, Verdict] = {"met": "shown", "missed": "refuted", "undecided": "undecided"}


def limit_verdict(
    latencies: Latencies,
    limit: float,
    percentile: float = 0.95,
    *,
    what: str = "TTFT",
    confidence: float = CONFIDENCE,
) -> Claim:
    """Return whether this part of all requests keeps a limit of seconds.

    The estimate and its interval are of the share of requests within the limit. A request that was
    cut off before the limit counts as beyond it where the limit is to be met, and as within where
    it is to be missed; one that failed is beyond.
    """
    overruns, total = latencies.overruns(limit), latencies.total
    decided = decide(overruns, total, percentile, confidence)
    low, high = (
        share_interval(total - overruns[1], total)[0],
        share_interval(total - overruns[0], total)[1],
    )
    within = total - overruns[0]
    seen = f"{within:,} of {total:,} requests kept {what} {human_seconds(limit)}"
    goal = f"p{percentile * 100:g} is {{}} with {confidence:.0%} confidence"
    needed = None
    if decided == "undecided":
        needed = requests_to_decide(overruns[0], total, percentile, confidence)
    return Claim(
        verdict=_VERDICTS[decided],
        estimate=within / total if total else 0.0,
        low=low,
        high=high,
        why=f"{seen}: {goal.format(_SAID[decided])}",
        needed=needed,
    )


def turning_limit(latencies: Latencies, met: bool, percentile: float = 0.95) -> float | None:
    """Return the least limit of those that are met, or of those that are not missed: there the
    verdict on a later, or on an earlier one turns. None where nothing was seen that late.
    """

    def holds(limit: float) -> bool:
        verdict = limit_verdict(latencies, limit, percentile).verdict
        return verdict == "shown" if met else verdict != "refuted"

    place = bisect.bisect_left(latencies.seen, True, key=holds)
    return latencies.seen[place] if place < len(latencies.seen) else None


_SAID: dict[Decided, str] = {
    "met": "met",
    "missed": "missed",
    "undecided": "neither met nor missed",
}


def share_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share, by Clopper and Pearson; all of 0 to 1 of no trial."""
    if not trials:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
