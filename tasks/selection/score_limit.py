"""A limit on a score, decided by the end of the score's interval."""

import math

from weighbridge.core.formatting import figure
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.selection.evidence import Evidence, Rows
from weighbridge.tasks.statistics.verdict import Claim, Verdict


def beyond(rule: str, label: str, score: Score, limit: float, rows: Rows) -> Evidence:
    """Return whether a score is on the right side of a limit: not below it, or not above it where
    less is better.
    """
    sign = 1 if score.greater_is_better else -1
    worst, best = sorted((sign * score.low, sign * score.high))
    kept, side = sign * limit, "below" if sign > 0 else "above"
    verdict: Verdict = "shown" if worst >= kept else "refuted" if best < kept else "undecided"
    needed = _rows_for(score, limit) if verdict == "undecided" else None
    claim = Claim(
        verdict=verdict, estimate=score.value, low=score.low, high=score.high, why="", needed=needed
    )
    words = {
        "refuted": f"{label} {figure(score.value, 4)} is {side} the limit {figure(limit, 4)}",
        "undecided": f"undecided: {label} {score} may be {side} the limit {figure(limit, 4)}"
        f"{needed_rows(claim)}",
        "shown": f"{label} {score} is not {side} the limit {figure(limit, 4)}",
    }
    return Evidence(
        rule=rule,
        rows=rows,
        claim=claim.model_copy(update={"why": words[verdict]}),
        seen=sign * score.value >= kept,
    )


def _rows_for(score: Score, limit: float) -> int | None:
    """Return how many rows make the interval as narrow as the distance to the limit."""
    distance, rows = abs(score.value - limit), len(score.per_example)
    end = score.low if score.value > limit else score.high
    if not (rows and distance):
        return None
    # An interval's width falls with the root of the rows.
    return max(rows + 1, math.ceil(rows * ((score.value - end) / distance) ** 2))


def how_seen(claim: Claim) -> str:
    """Return which rows differ, say, to be put after the figures of a claim."""
    return f"; {claim.how}" if claim.how else ""


def needed_rows(claim: Claim) -> str:
    """Return how many rows would decide a claim, to be put after a sentence on it."""
    return f"; {claim.needed:,} rows would decide" if claim.needed else ""
