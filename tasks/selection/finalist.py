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
from weighbridge.tasks.selection.replacement import Replacement, replacement

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
    objective, against = Objective(args), _against(contenders, champion, args)
    first = in_order(contenders, standings, champion, args)[0]
    likeliest = _likelihood(first, standings, against)
    field = [one for one in contenders if _likelihood(one, standings, against) == likeliest]
    best = objective.best(field)
    tied = [one for one in field if objective.tied(best, one)]
    chosen = min([best, *tied], key=_simplest)
    judged = against.get(chosen.candidate.label)
    next_best = objective.best([one for one in field if one is not chosen] or [chosen])
    return Finalist(
        chosen,
        _praise(chosen, best, next_best, len(contenders), objective),
        judged.why if judged and judged.verdict == "refuted" else "",
    )


def in_order(
    contenders: Sequence[Measurement],
    standings: Mapping[str, Standing],
    champion: Measurement | None,
    args: SelectArgs,
) -> list[Measurement]:
    """Return those within the limits by how likely each is to be released, then by the objective's
    estimate.
    """
    rank, against = Objective(args).rank, _against(contenders, champion, args)
    return sorted(contenders, key=lambda one: (_likelihood(one, standings, against), rank(one)))


def _against(
    contenders: Sequence[Measurement], champion: Measurement | None, args: SelectArgs
) -> dict[str, Replacement]:
    """Return by label what the validation rows say of each in the champion's place."""
    if champion is None:
        return {}
    return {
        one.candidate.label: replacement(champion, one, "validation", args) for one in contenders
    }


def _likelihood(
    measurement: Measurement, standings: Mapping[str, Standing], against: Mapping[str, Replacement]
) -> tuple[int, int]:
    label = measurement.candidate.label
    return standings[label].likely, _LIKELY[against[label].verdict] if against else 0


def why_not(measurement: Measurement, chosen: Measurement, args: SelectArgs) -> str:
    """Return why a candidate that may be within the limits was not chosen."""
    objective = Objective(args)
    comparison = f"{objective.shown(measurement)} against {objective.shown(chosen)}"
    if objective.tied(measurement, chosen):
        return f"tied, with no fewer options changed and no smaller: {comparison}"
    told = objective.told_apart(chosen, measurement)
    # Not "slower": by the repeats' estimate, which may be another than that of the first run.
    if told.startswith("not"):
        return f"{told}; measured once, {comparison}"
    if told or objective.rank(measurement) > objective.rank(chosen):
        return f"{objective.goal.worse}: {comparison}" + (f"; {told}" if told else "")
    return f"less likely to be shown to keep the limits, or to beat the champion: {comparison}"


def _simplest(measurement: Measurement) -> tuple[int, int, str]:
    candidate = measurement.candidate
    changed = candidate.engine.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    # The label, so that equals give the same winner every time.
    return len(changed), candidate.variant.artifact.size, candidate.label


def _praise(
    chosen: Measurement, best: Measurement, next_best: Measurement, many: int, objective: Objective
) -> str:
    label, figure = chosen.candidate.label, objective.shown(chosen)
    at = objective.at(chosen)
    if many == 1:
        return f"{label} is the only candidate within the limits ({figure}{at})"
    if chosen is best:
        return (
            f"{label} is the {objective.goal.best} ({figure}{at}) of {many} candidates within the "
            f"limits{_told(chosen, next_best, objective)}"
        )
    return (
        f"{label} ({figure}{at}) is tied with the {objective.goal.best} of {many} candidates "
        f"within the limits ({best.candidate.label}, {objective.shown(best)}), and has fewer "
        "options changed or is smaller"
    )


def _told(chosen: Measurement, next_best: Measurement, objective: Objective) -> str:
    """Return whether it is told apart from the next one, to be put after a sentence."""
    told = objective.told_apart(chosen, next_best)
    return f"; from {next_best.candidate.label} it is {told}" if told else ""
