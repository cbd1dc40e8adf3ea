"""The finalist: the one candidate that is chosen, on the validation rows, to be decided about.

To choose is not to prove: the best of many looks better than it is, on the rows that it was chosen
on. So any number may be compared here, without a correction, and nothing of it counts as evidence
(T. Hastie, R. Tibshirani, J. Friedman, The Elements of Statistical Learning, 2009, section 7.2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.limits import Standing
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.selection.replacement import replacement

_LIKELY = {"shown": 0, "undecided": 1, "refuted": 2}


@dataclass(frozen=True)
class Finalist:
    """The candidate that was chosen, and what is to be said for it."""

    measurement: Measurement
    praise: str
    hopeless: str = ""
    """Why it cannot take the champion's place, where the validation rows say so already."""


def choose(
    contenders: Sequence[Measurement],
    standings: Mapping[str, Standing],
    champion: Measurement | None,
    args: SelectArgs,
) -> Finalist | None:
    """Return the best of those within the limits; None where there are none.

    Those come first that are the likeliest to be shown to keep the limits, and to be shown to beat
    the champion; among these the objective decides, and where two are tied the one with fewer
    options changed, then the smaller one.
    """
    if not contenders:
        return None
    against = {
        measurement.candidate.label: replacement(champion, measurement, "validation", args)
        for measurement in contenders
        if champion is not None
    }

    def likelihood(measurement: Measurement) -> tuple[int, int]:
        label = measurement.candidate.label
        beats = _LIKELY[against[label].verdict] if champion is not None else 0
        return standings[label].likely, beats

    likeliest = min(map(likelihood, contenders))
    field = [measurement for measurement in contenders if likelihood(measurement) == likeliest]
    objective = Objective(args)
    best = min(field, key=objective.rank)
    tied = [measurement for measurement in field if objective.tied(best, measurement)]
    chosen = min([best, *tied], key=_simplest)
    judged = against.get(chosen.candidate.label)
    return Finalist(
        chosen,
        _praise(chosen, best, len(contenders), objective),
        judged.why if judged and judged.verdict == "refuted" else "",
    )


def why_not(measurement: Measurement, chosen: Measurement, args: SelectArgs) -> str:
    """Return why a candidate that may be within the limits was not chosen."""
    objective = Objective(args)
    comparison = f"{objective.shown(measurement)} against {objective.shown(chosen)}"
    if objective.tied(measurement, chosen):
        return f"tied, with no fewer options changed and no smaller: {comparison}"
    if objective.rank(measurement) > objective.rank(chosen):
        return f"{objective.goal.worse}: {comparison}"
    return f"less likely to be shown to keep the limits, or to beat the champion: {comparison}"


def _simplest(measurement: Measurement) -> tuple[int, int, str]:
    candidate = measurement.candidate
    changed = candidate.engine.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    # The label, so that equals give the same winner every time.
    return len(changed), candidate.variant.artifact.size, candidate.label


def _praise(chosen: Measurement, best: Measurement, many: int, objective: Objective) -> str:
    label, figure = chosen.candidate.label, objective.shown(chosen)
    at = objective.at(chosen)
    if many == 1:
        return f"{label} is the only candidate within the limits ({figure}{at})"
    if chosen is best:
        return (
            f"{label} is the {objective.goal.best} ({figure}{at}) of {many} candidates within the "
            "limits"
        )
    return (
        f"{label} ({figure}{at}) is tied with the {objective.goal.best} of {many} candidates "
        f"within the limits ({best.candidate.label}, {objective.shown(best)}), and has fewer "
        "options changed or is smaller"
    )
