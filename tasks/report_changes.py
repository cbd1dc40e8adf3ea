"""What would change a decision: the limit at which a verdict turns, and the objective that would
choose another candidate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, get_args

from weighbridge.core.formatting import figure, human_seconds, human_size
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select import Decision
from weighbridge.tasks.select_args import Goal, SelectArgs
from weighbridge.tasks.selection.evidence import Evidence
from weighbridge.tasks.selection.objective import Objective, figures_at
from weighbridge.tasks.selection.replacement import NOT_WORSE
from weighbridge.tasks.statistics.quantiles import turning_limit

_TTFT: Final = "max_ttft_p95"
_LOSSES: Final = ("max_loss", "max_nll_increase", NOT_WORSE)
"""Their figures are differences, of which less than nothing is a loss."""
_SHOWN: Mapping[str, Callable[[float], str]] = {
    "max_memory": human_size,
    "max_size": human_size,
    "max_ttft_p95": human_seconds,
    "max_length_change": lambda change: f"{change:.1%}",
    **dict.fromkeys(
        ("max_errors", "max_empty", "max_truncated", "max_refused", "max_malformed"),
        lambda share: f"{share:.1%}",
    ),
}


def needed(piece: Evidence, finalist: Measurement | None, decision: Decision) -> str:
    """Return what would turn the verdict on a rule: rows or repeats, or another limit."""
    claim = piece.claim
    if claim.verdict == "undecided":
        if claim.needed is None:
            return "not known"
        of = "rows" if piece.rows else "requests" if piece.rule == _TTFT else "repeats"
        return f"{claim.needed:,} {of}"
    turning = _turning_point(piece, finalist, decision)
    if turning is None:
        return "—"
    value, least = turning
    # Nothing is less than no error, and no limit is above everything.
    if not math.isfinite(value) or (value <= 0 and not least):
        return "—"
    beyond = least == (claim.verdict == "shown")
    return f"a limit {'above' if beyond else 'below'} {_SHOWN.get(piece.rule, figure)(value)}"


def _turning_point(
    piece: Evidence, finalist: Measurement | None, decision: Decision
) -> tuple[float, bool] | None:
    """Return the limit at which the verdict turns, and whether it is a least value."""
    claim, rule = piece.claim, piece.rule
    shown = claim.verdict == "shown"
    if rule == "floor":
        score = decision.finalist_score
        greater = score is None or score.greater_is_better
        return (claim.low if shown == greater else claim.high), greater
    if rule in _LOSSES:
        return (-claim.low if shown else -claim.high), False
    if rule == _TTFT:
        load = figures_at(finalist, decision.concurrency) if finalist else None
        turns = _turning_ttft(load, shown) if load else None
        return (turns, False) if turns else None
    if rule == "max_length_change":
        return abs(claim.estimate), False
    if " better by " in rule:
        return (claim.low if shown else claim.high), True
    if rule.startswith("max_"):
        return (claim.high if shown else claim.low), False
    return ((claim.low if shown else claim.high), True) if rule.startswith("min_") else None


def _turning_ttft(load: LoadFigures, shown: bool) -> float | None:
    # An older record has no single latencies: there the percentile itself decided.
    if load.ttft is None:
        return load.ttft_p95
    return turning_limit(load.ttft, shown)


def other_objectives(
    measurements: Sequence[Measurement], decision: Decision, args: SelectArgs
) -> list[str]:
    """Return which candidates come first by another objective, by the figures as they were seen."""
    # Repeats are of the objective that decided.
    within = [
        measurement.model_copy(update={"repeats": [], "noise": None})
        for measurement in measurements
        if measurement.candidate.label not in decision.refused
    ]
    first: dict[str, list[str]] = {}
    for goal in get_args(Goal):
        objective = Objective(args.model_copy(update={"objective": goal}))
        known = [one for one in within if objective.value(one) is not None]
        if goal == args.objective or not known:
            continue
        best = objective.best(known)
        # Whoever is tied with it is chosen for other reasons.
        if decision.finalist in [
            one.candidate.label for one in known if one is best or objective.tied(best, one)
        ]:
            continue
        said = f"{goal} ({objective.shown(best)})"
        first.setdefault(best.candidate.label, []).append(said)
    return [
        f"{label} comes first by another objective: {', '.join(goals)}, as measured once."
        for label, goals in first.items()
    ]
