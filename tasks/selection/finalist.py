"""The finalist: the one candidate that is chosen, on the validation rows, to be decided about.

To choose is not to prove: the best of many looks better than it is, on the rows that it was chosen
on. So any number may be compared here, without a correction, and nothing of it counts as evidence
(T. Hastie, R. Tibshirani, J. Friedman, The Elements of Statistical Learning, 2009, section 7.2).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.choice import Choice
from weighbridge.tasks.selection.limits import Standing
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.selection.replacement import Replacement, replacement
from weighbridge.tasks.statistics.repeats import USUAL_SPREAD
from weighbridge.tasks.statistics.single_runs import luck

_LIKELY = {"shown": 0, "undecided": 1, "refuted": 2}
MOST_REPEATED: Final = 4
"""Candidates, beside the champion, that are repeated: each takes a start per block."""


@dataclass(frozen=True)
class Finalist:
    """The candidate that was chosen, and what is to be said for it."""

    measurement: Measurement
    praise: str
    reasons: Mapping[str, str]
    """Why not each of the others that are within the limits, by label."""
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
    options changed, then the smaller one. Where some of these were repeated, it is one of them.
    """
    if not contenders:
        return None
    objective, against = Objective(args), _against(contenders, champion, args)
    likelihood = _likelihood(standings, against)
    likeliest = min(map(likelihood, contenders))
    field = [one for one in contenders if likelihood(one) == likeliest]
    compared = objective.comparable(field)
    best = objective.best(compared)
    tied = [one for one in compared if one is not best and objective.tied(best, one)]
    chosen = min([best, *tied], key=_simplest)
    choice = Choice(objective, contenders, standings, against, field, compared, tied, best, chosen)
    judged = against.get(chosen.candidate.label)
    return Finalist(
        chosen,
        choice.praise(),
        {one.candidate.label: choice.why_not(one) for one in contenders if one is not chosen},
        judged.why if judged and judged.verdict == "refuted" else "",
    )


def to_repeat(
    contenders: Sequence[Measurement],
    standings: Mapping[str, Standing],
    champion: Measurement | None,
    args: SelectArgs,
    spread: float = USUAL_SPREAD,
) -> list[Measurement]:
    """Return those that may be the finalist once they are repeated, the likeliest first.

    Of those that are the likeliest to keep the limits, they are the ones that single runs do not
    tell from the best, and from the best that is likeliest to beat the champion as well. Where they
    are too many, the one that would win a tie is among them. They are two at least where there is
    no champion to be compared with. `spread` is the standard deviation of a single run's log.
    """
    if not contenders:
        return []
    rank, behind = Objective(args).rank, Objective(args).behind
    likelihood = _likelihood(standings, _against(contenders, champion, args))
    ranked = sorted(contenders, key=lambda one: (likelihood(one), rank(one)))
    peers = [one for one in ranked if likelihood(one)[0] == likelihood(ranked[0])[0]]
    best, by_luck = min(peers, key=rank), luck(len(peers), spread)
    near = [
        one
        for one in peers
        if behind(one, best) <= by_luck
        or (likelihood(one) == likelihood(ranked[0]) and behind(one, ranked[0]) <= by_luck)
    ]
    if len(near) <= MOST_REPEATED:
        return near if champion is not None or len(near) > 1 else ranked[:2]
    wanted = [ranked[0], min(near, key=_simplest), *sorted(near, key=rank)]
    labels = list(dict.fromkeys(one.candidate.label for one in wanted))[:MOST_REPEATED]
    return [one for one in near if one.candidate.label in labels]


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
    standings: Mapping[str, Standing], against: Mapping[str, Replacement]
) -> Callable[[Measurement], tuple[int, int]]:
    """Return what tells of a candidate how likely it is to be released: less is likelier."""

    def likelihood(measurement: Measurement) -> tuple[int, int]:
        label = measurement.candidate.label
        return standings[label].likely, _LIKELY[against[label].verdict] if against else 0

    return likelihood


def _simplest(measurement: Measurement) -> tuple[int, int, str]:
    candidate = measurement.candidate
    # The label, so that equals give the same winner every time.
    return len(candidate.engine.changed()), candidate.variant.artifact.size, candidate.label
