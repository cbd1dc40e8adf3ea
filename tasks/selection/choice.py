"""What is said of a choice: why the finalist, and why not each of the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.selection.limits import Standing
from weighbridge.tasks.selection.objective import Objective
from weighbridge.tasks.selection.replacement import Replacement
from weighbridge.tasks.statistics.single_runs import luck


@dataclass(frozen=True)
class Choice:
    """A finalist, and by what it was chosen."""

    objective: Objective
    contenders: Sequence[Measurement]
    """All that may be within the limits, but the champion."""
    standings: Mapping[str, Standing]
    against: Mapping[str, Replacement]
    """What is known of each in the champion's place; empty where there is no champion."""
    field: Sequence[Measurement]
    """The likeliest to be released."""
    compared: Sequence[Measurement]
    """Those of the field that were repeated; all of them where none was."""
    tied: Sequence[Measurement]
    """Those that are tied with the best one."""
    best: Measurement
    chosen: Measurement

    def praise(self) -> str:
        """Return what is to be said for the finalist."""
        label, many = self.chosen.candidate.label, len(self.contenders)
        at = self.objective.at(self.chosen)
        if self.objective.is_repeated(self.chosen):
            by = " by repeats"
            figure = f"measured once: {self.objective.shown(self.chosen)}{at}"
        else:
            by, figure = "", f"{self.objective.shown(self.chosen)}{at}"
        if many == 1:
            figure = figure.removeprefix("measured once: ")
            return f"{label} is the only candidate within the limits ({figure})"
        if len(self.field) == 1:
            return (
                f"{label} ({figure}) is the likeliest of {many} candidates within the limits to be "
                f"shown to {self._likeliest_to()}"
            )
        among = f"{many} candidates within the limits"
        if len(self.field) < many:
            deed = self._likeliest_to()
            among = f"{len(self.field)} of {among} that are likeliest to be shown to {deed}"
        best = f"{self.objective.goal.best}{by}"
        if self.chosen is self.best:
            next_best, told = self._from_the_next()
            # What was only seen is told as that.
            verb = "was" if told.startswith("not") else "is"
            apart = f"; from {next_best} it is {told}" if told else ""
            return f"{label} {verb} the {best} ({figure}) of {among}{apart}"
        return (
            f"{label} ({figure}) is tied with the {best} of {among} "
            f"({self.best.candidate.label}, {self.objective.shown(self.best)}), and has fewer "
            "options changed or is smaller"
        )

    def why_not(self, one: Measurement) -> str:
        """Return why a candidate that may be within the limits was not chosen."""
        if not _holds(self.field, one):
            return self._less_likely(one)
        if not _holds(self.compared, one):
            return self._not_repeated(one)
        if one is self.best or _holds(self.tied, one):
            claim = self.objective.tie(self.chosen if one is self.best else self.best, one)
            seen = claim.why if claim else self._comparison(one, self.chosen)
            return f"tied, with no fewer options changed and no smaller: {seen}"
        return self._behind(one)

    def _likeliest_to(self) -> str:
        """Return what those outside the field are less likely to be shown to do."""
        others = [one for one in self.contenders if not _holds(self.field, one)]
        keep = [one for one in others if self._may_break_more(one)]
        deeds = ["keep them"] if keep else []
        return " and to ".join(deeds + (["beat the champion"] if len(keep) < len(others) else []))

    def _may_break_more(self, one: Measurement) -> bool:
        mine, yours = (
            self.standings[measurement.candidate.label].likely for measurement in (one, self.chosen)
        )
        return mine > yours

    def _less_likely(self, one: Measurement) -> str:
        label = one.candidate.label
        if self._may_break_more(one):
            return f"less likely to be shown to keep the limits: {self.standings[label].why}"
        return f"less likely to be shown to beat the champion: {self.against[label].why}"

    def _not_repeated(self, one: Measurement) -> str:
        peers = [
            other
            for other in self.contenders
            if self.standings[other.candidate.label].likely
            == self.standings[one.candidate.label].likely
        ]
        ahead = min(self.compared, key=self.objective.rank)
        behind = self.objective.behind(one, ahead)
        by_luck = luck(len(peers), ahead.noise.spread) if ahead.noise else luck(len(peers))
        figures = self._comparison(one, ahead)
        if behind > by_luck:
            return (
                f"not repeated: measured once, it was {behind:.1%} behind {ahead.candidate.label}, "
                f"more than single runs differ by chance ({by_luck:.1%}): {figures}"
            )
        return (
            f"not repeated, as were {len(self.compared)} others that single runs do not tell from "
            f"it: measured once, {figures}"
        )

    def _behind(self, one: Measurement) -> str:
        """Return by what one is behind the best, which may be another than the chosen one."""
        worse, figures = self.objective.goal.worse, self._comparison(one, self.best)
        told, label = self.objective.told_apart(self.best, one), self.best.candidate.label
        tied = "" if self.best is self.chosen else f"{label}, with which the winner is tied"
        # Not "slower": by the repeats' estimate, which may be another than that of the first run.
        if told.startswith("not"):
            return f"{told}{tied and f' from {tied}'}; measured once, {figures}"
        return f"{worse}{tied and f' than {tied}'}: {told or figures}"

    def _comparison(self, one: Measurement, other: Measurement) -> str:
        return f"{self.objective.shown(one)} against {self.objective.shown(other)}"

    def _from_the_next(self) -> tuple[str, str]:
        """Return the label of the next one, and whether repeats tell the two apart; nothing where
        there is none, or where there are no repeats.
        """
        others = [one for one in self.compared if one is not self.chosen]
        if not others:
            return "", ""
        next_best = self.objective.best(others)
        return next_best.candidate.label, self.objective.told_apart(self.chosen, next_best)


def _holds(measurements: Sequence[Measurement], one: Measurement) -> bool:
    # Not `in`: equality compares every figure.
    return any(one is other for other in measurements)
