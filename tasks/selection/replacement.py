"""Whether a challenger takes the champion's place.

It does where (a) it is better in quality, or (b) it is not worse by more than a margin, and better
in the objective by `min_improvement`. Each is decided by the end of an interval, never by the
estimate: superiority, else non-inferiority at a gain, on the same rows (European Medicines Agency,
Points to consider on switching between superiority and non-inferiority, CPMP/EWP/482/99, 2000).
Both may be tried at the full level: who is better is also not worse by a margin.
"""

from dataclasses import dataclass
from typing import Final

from weighbridge.core.formatting import figure, one_line
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.evidence import Evidence, Rows, all_of, unknown
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.selection.score_limit import how_seen, needed_rows
from weighbridge.tasks.statistics import paired
from weighbridge.tasks.statistics.proportions import normal_quantile
from weighbridge.tasks.statistics.sample_size import quantiles
from weighbridge.tasks.statistics.verdict import Claim, Verdict

LEAST_POWER: Final = 0.1
BETTER, NOT_WORSE = "better than the champion", "not worse than the champion"


@dataclass(frozen=True)
class Replacement:
    """The verdict on "the challenger takes the champion's place", with what it rests on."""

    verdict: Verdict
    why: str
    evidence: list[Evidence]


def replacement(
    champion: Measurement, challenger: Measurement, rows: Rows, args: SelectArgs
) -> Replacement:
    """Return whether the challenger takes the champion's place, judged on one split."""
    if champion.failure:
        why = f"the champion could not be measured: {one_line(champion.failure)}"
        return Replacement("undecided", why, [unknown(BETTER, why)])
    mine, yours = (
        _scores(measurement, rows).get(args.metric) for measurement in (challenger, champion)
    )
    if mine is None or yours is None:
        why = f"{args.metric} of both was not measured on the same rows"
        return Replacement("undecided", why, [unknown(BETTER, why)])
    better = _better(yours, mine, rows, args)
    if better.claim.verdict == "shown" or args.objective == "quality":
        return Replacement(better.claim.verdict, better.claim.why, [better])
    as_good = _not_worse(yours, mine, rows, args)
    gain = Objective(args).improvement(champion, challenger)
    evidence = [better, as_good, gain]
    cheaper = all_of([as_good, gain])
    if cheaper == "shown":
        return Replacement("shown", f"{gain.claim.why}; {as_good.claim.why}", evidence)
    refuted = better.claim.verdict == cheaper == "refuted"
    return Replacement("refuted" if refuted else "undecided", _why_not(evidence), evidence)


def _better(yours: Score, mine: Score, rows: Rows, args: SelectArgs) -> Evidence:
    claim = paired.better(yours, mine)
    between = f"its {args.metric} is {figure(mine.value, 4)} against {figure(yours.value, 4)}"
    words = {
        "shown": f"{between}, beyond doubt better",
        "refuted": f"{between}, beyond doubt worse",
        "undecided": f"{between}: undecided which is better",
    }
    return _evidence(BETTER, rows, claim, words[claim.verdict], claim.estimate > 0)


def _not_worse(yours: Score, mine: Score, rows: Rows, args: SelectArgs) -> Evidence:
    claim = paired.not_worse(yours, mine, args.margin)
    than = f"than the champion's by {figure(args.margin)}"
    words = {
        "shown": f"its {args.metric} is not worse {than}",
        "refuted": f"its {args.metric} is worse {than} at least",
        "undecided": f"undecided whether its {args.metric} is worse {than}",
    }
    if claim.verdict == "shown" and not can_test(claim.high - claim.low, args.margin):
        claim = claim.model_copy(update={"verdict": "undecided"})
        words["undecided"] = f"too few rows to test whether its {args.metric} is worse {than}"
    return _evidence(NOT_WORSE, rows, claim, words[claim.verdict], claim.estimate > -args.margin)


def can_test(width: float, margin: float) -> bool:
    """Whether a margin is wide enough for an interval of this width: an equal model would be shown
    to be no worse in one case of ten at least.

    Where the truth is hardly ever shown, most of what is shown is not true. K. S. Button et al.,
    Power failure, Nature Reviews Neuroscience 14 (2013), 365-376.
    """
    standard_error = width / (2 * normal_quantile(0.05))
    return margin >= quantiles(power=LEAST_POWER) * standard_error


def _evidence(rule: str, rows: Rows, claim: Claim, words: str, seen: bool) -> Evidence:
    why = f"{words} ({claim.low:+.3g} to {claim.high:+.3g}{how_seen(claim)}{needed_rows(claim)})"
    return Evidence(rule=rule, rows=rows, claim=claim.model_copy(update={"why": why}), seen=seen)


def _why_not(evidence: list[Evidence]) -> str:
    return "; ".join(piece.claim.why for piece in evidence if piece.claim.verdict != "shown")


def _scores(measurement: Measurement, rows: Rows) -> dict[str, Score]:
    return measurement.test_scores if rows == "test" else measurement.scores
