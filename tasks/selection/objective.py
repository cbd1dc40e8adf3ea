"""The objective: the figure that decides among candidates, and by how much one is better."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from weighbridge.core.formatting import figure, human_seconds, human_size
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import Goal, SelectArgs
from weighbridge.tasks.selection.evidence import Evidence, exact, unknown
from weighbridge.tasks.statistics.paired import better
from weighbridge.tasks.statistics.repeats import TIE, faster, tied
from weighbridge.tasks.statistics.verdict import Claim

_OF_LOAD: Mapping[Goal, Callable[[LoadFigures], float]] = {
    "throughput": lambda load: load.useful_tokens_per_second,
    "cost": lambda load: load.useful_tokens_per_second,
    "requests": lambda load: load.useful_requests_per_second,
    "request_cost": lambda load: load.useful_requests_per_second,
    "latency": lambda load: 1 / load.ttft_p95 if load.ttft_p95 else math.nan,
}
"""Objectives that another run would give otherwise: the figure of one, so that more is better."""
_UNPACED: Collection[Goal] = ("quality", "memory", "size")
"""Objectives that do not change with the speed of the machine."""
_AT_A_CONCURRENCY: Collection[Goal] = ("throughput", "requests", "latency")
_COSTS: Collection[Goal] = ("cost", "request_cost")
NO_COST: Final = "its cost is not known: set weigh.price_per_hour"


@dataclass(frozen=True)
class _Goal:
    best: str
    """As an adjective: `fastest`."""
    worse: str
    greater_is_better: bool
    shown: Callable[[float], str]


_GOALS: Mapping[Goal, _Goal] = {
    "throughput": _Goal("fastest", "slower", True, lambda value: f"{value:,.0f} tokens/s"),
    "cost": _Goal(
        "cheapest", "dearer", False, lambda value: f"{figure(value, 4)} per million tokens"
    ),
    "requests": _Goal("fastest", "slower", True, lambda value: f"{figure(value)} requests/s"),
    "request_cost": _Goal(
        "cheapest", "dearer", False, lambda value: f"{figure(value, 4)} per 1,000 requests"
    ),
    "latency": _Goal("quickest", "later", False, lambda value: f"p95 TTFT {human_seconds(value)}"),
    "quality": _Goal("best in quality", "worse in quality", True, lambda value: figure(value, 4)),
    "memory": _Goal("smallest in memory", "larger in memory", False, human_size),
    "goodput": _Goal(
        "best within its limits",
        "slower within its limits",
        True,
        lambda value: f"{figure(value)} requests/s that keep the limits",
    ),
    "size": _Goal("smallest", "larger", False, human_size),
}


def bracket(measurement: Measurement) -> tuple[float, float]:
    """Return the highest rate at which the limits are met, and the lowest at which they are missed,
    both beyond doubt.
    """
    met = (load.rate or 0.0 for load in measurement.rates if load.objective == "met")
    missed = (load.rate or 0.0 for load in measurement.rates if load.objective == "missed")
    return max(met, default=0.0), min(missed, default=math.inf)


def _rate(decided: float) -> str:
    """Return one end of a bracket in words."""
    if decided and math.isfinite(decided):
        return f"{figure(decided)} requests/s"
    return "no rate that was tried beyond doubt"


def _unsteady(champion: Measurement) -> str:
    """Return why speeds of this weighing are not to be believed, to be put after a sentence."""
    if champion.noise is None:
        return "; no speed is shown, for the champion was not run again (weigh.repeats)"
    drift = champion.noise.drift
    return "" if drift.steady else f"; no speed is shown, for {drift.why}"


def _answer_tokens(measurement: Measurement) -> float:
    """Return the tokens of an answer at the goodput; 1 where that is not known."""
    return (measurement.goodput and measurement.goodput.answer_tokens) or 1.0


def figures_at(measurement: Measurement, concurrency: int | None) -> LoadFigures | None:
    """Return the load figures at a concurrency; None means the highest that was measured."""
    level = concurrency or highest_concurrency([measurement])
    return next((load for load in measurement.load if load.concurrency == level), None)


def highest_concurrency(measurements: Sequence[Measurement]) -> int | None:
    """Return the highest concurrency at which any of them was measured."""
    return max(
        (load.concurrency for measurement in measurements for load in measurement.load),
        default=None,
    )


class Objective:
    """Reads one objective out of measurements."""

    def __init__(self, args: SelectArgs) -> None:
        self.args = args
        self.goal = _GOALS[args.objective]

    @property
    def is_quality(self) -> bool:
        return self.args.objective == "quality"

    def value(self, measurement: Measurement) -> float | None:
        """Return the figure that decides; None where it is not known."""
        load = figures_at(measurement, self.args.concurrency)
        score = measurement.scores.get(self.args.metric)
        figures: Mapping[Goal, float | None] = {
            "throughput": load.useful_tokens_per_second if load else None,
            "requests": load.useful_requests_per_second if load else None,
            "latency": load.ttft_p95 if load else None,
            "request_cost": measurement.cost_per_thousand_requests,
            "cost": measurement.cost_per_million_tokens,
            "quality": score.value if score else None,
            "goodput": measurement.sustained or None,
            # 0 where no sample was taken.
            "memory": measurement.peak_memory or None,
            "size": measurement.candidate.variant.artifact.size,
        }
        value = figures[self.args.objective]
        known = not measurement.failure and value is not None and math.isfinite(value)
        return float(value) if known and value is not None else None

    def missing(self, measurement: Measurement) -> str | None:
        """Return that the figure is not known: nothing can win on it then."""
        goal = self.args.objective
        if self.value(measurement) is not None or self.is_quality:
            return None
        if measurement.sustained == 0:
            return f"it kept the limits at none of {len(measurement.rates)} rates"
        return NO_COST if goal in _COSTS else f"its {goal} is not known"

    def shown(self, measurement: Measurement) -> str:
        """Return the figure for a person."""
        value = self.value(measurement)
        return "unknown" if value is None else self.goal.shown(value)

    def at(self, measurement: Measurement) -> str:
        """Return under which load the figure was taken; empty where none belongs to it."""
        load, goal = figures_at(measurement, self.args.concurrency), self.args.objective
        if goal in _COSTS and measurement.rates:
            return " at the highest rate that kept the limits"
        known = load and goal in (*_AT_A_CONCURRENCY, *_COSTS)
        return f" at concurrency {load.concurrency}" if known and load else ""

    def rank(self, measurement: Measurement) -> float:
        """Return the figure so that less is better; infinite where it is not known."""
        value = self.value(measurement)
        if value is None:
            return math.inf
        return -value if self._more_is_better(measurement) else value

    @property
    def is_speed(self) -> bool:
        """Whether another run would give another figure."""
        return self.args.objective in _OF_LOAD

    @property
    def is_paced(self) -> bool:
        """Whether a machine that became slower would give another figure."""
        return self.args.objective not in _UNPACED

    def speed(self, load: LoadFigures) -> float:
        """Return the figure of one run so that more is better; NaN where it has none."""
        if self.args.objective == "goodput":
            # It takes many runs; one of them tells how fast the machine is.
            return load.requests_per_second
        return _OF_LOAD[self.args.objective](load)

    def is_repeated(self, measurement: Measurement) -> bool:
        """Whether there are repeats of the figure that decides."""
        return self.is_speed and bool(measurement.repeats) and not self.at_goodput(measurement)

    def at_goodput(self, measurement: Measurement) -> bool:
        """Whether the figure is of the highest rate that kept the limits, which is never repeated:
        it is decided at each rate that was tried.
        """
        return self.args.objective == "goodput" or (
            self.args.objective in _COSTS and bool(measurement.rates)
        )

    def comparable(self, measurements: Sequence[Measurement]) -> list[Measurement]:
        """Return those that were repeated beside each other; all, where none was.

        A single run decides nothing against repeats: of many, the luckiest is ahead.
        """
        repeated = [one for one in measurements if self.is_repeated(one)]
        if not repeated:
            return list(measurements)
        first = min(repeated, key=self.rank)
        return [one for one in repeated if self.beside(first, one)]

    def best(self, measurements: Sequence[Measurement]) -> Measurement:
        """Return the best by the estimates: of those that were repeated, by their repeats."""
        return min(
            self.comparable(measurements), key=lambda one: (-self._mean(one), self.rank(one))
        )

    def behind(self, one: Measurement, other: Measurement) -> float:
        """Return by which share of the better figure two differ that were measured once."""
        mine, yours = self.value(one), self.value(other)
        if not mine or not yours:
            return 0.0 if mine == yours else 1.0
        return 1 - min(mine / yours, yours / mine)

    def tied(self, one: Measurement, other: Measurement) -> bool:
        """Whether two differ by no more than 1 %: of repeats, the whole interval; never where only
        one of them was repeated.
        """
        mine, yours = self.value(one), self.value(other)
        if mine is None or yours is None:
            return mine is yours
        if self.is_repeated(one) or self.is_repeated(other):
            claim = self.tie(one, other)
            return claim is not None and claim.verdict == "shown"
        if abs(mine - yours) <= TIE * max(abs(mine), abs(yours)):
            return True
        if self.is_quality:
            label = self.args.metric
            return better(one.scores[label], other.scores[label]).verdict == "undecided"
        return False

    def tie(self, one: Measurement, other: Measurement) -> Claim | None:
        """Return what repeats say of whether two are tied; None where there are none of both."""
        if one.noise is None or not self.beside(one, other):
            return None
        return tied(self.runs(one), self.runs(other), looks=one.noise.looks)

    def told_apart(self, one: Measurement, other: Measurement) -> str:
        """Return whether repeats tell the first from the second; empty where there are none."""
        claim = self._faster(other, one, 0.0)
        if claim is None:
            return ""
        told = "told apart" if claim.verdict == "shown" else "not told apart"
        return f"{told} by repeats ({claim.why})"

    def improvement(self, champion: Measurement, challenger: Measurement) -> Evidence:
        """Return whether the challenger's figure is better by `min_improvement`.

        The lower end of the repeats' interval decides. A figure that has none, such as a size,
        decides by itself.
        """
        rule = f"{self.args.objective} better by {figure(self.args.min_improvement)}"
        mine, yours = self.value(challenger), self.value(champion)
        if mine is None or yours is None:
            return unknown(rule, f"{self.args.objective} was not measured of both")
        between = f"{self.shown(challenger)} against {self.shown(champion)}"
        if self.at_goodput(challenger):
            return self._sustains(rule, champion, challenger, between)
        if self.args.objective not in _OF_LOAD:
            return self._exact(rule, mine, yours, between)
        claim = self._faster(champion, challenger, self.args.min_improvement)
        if claim is None:
            return unknown(rule, f"{between}, measured once: repeats decide (weigh.repeats)")
        claim = claim.model_copy(update={"why": f"{between}: {claim.why}"})
        seen = claim.estimate > 0 and claim.estimate >= self.args.min_improvement
        return Evidence(rule=rule, claim=claim, seen=seen)

    def _sustains(
        self, rule: str, champion: Measurement, challenger: Measurement, between: str
    ) -> Evidence:
        """Return whether the challenger keeps the limits at a rate that is higher by enough than
        one at which the champion misses them; each as decided at every rate that was tried.
        """
        # A token costs less where there are more of them in a request.
        tokens = _answer_tokens(challenger) / _answer_tokens(champion)
        share = tokens if self.args.objective == "cost" else 1.0
        least = (1 + self.args.min_improvement) / share
        mine, yours = bracket(challenger), bracket(champion)
        # One that is only equal replaces nobody, whatever the rounding of its rates.
        unsteady = _unsteady(champion)
        shown = mine[0] >= least * yours[1] and mine[0] > 0 and not unsteady
        refuted = mine[1] < least * yours[0]
        estimate = share * (challenger.sustained or 0.0) / (champion.sustained or math.inf) - 1
        claim = Claim(
            verdict="shown" if shown else "refuted" if refuted and not unsteady else "undecided",
            estimate=estimate,
            low=share * mine[0] / yours[1] - 1 if yours[1] else math.inf,
            high=share * mine[1] / yours[0] - 1 if yours[0] else math.inf,
            why=f"{between}: its limits are met at {_rate(mine[0])}, the champion's missed at "
            f"{_rate(yours[1])}{unsteady}",
        )
        return Evidence(rule=rule, claim=claim, seen=estimate >= self.args.min_improvement)

    def _faster(
        self, champion: Measurement, challenger: Measurement, min_improvement: float
    ) -> Claim | None:
        """Return what the repeats say; None where both were not repeated beside each other."""
        noise = challenger.noise
        if noise is None or not self.beside(champion, challenger):
            return None
        runs = (self.runs(champion), self.runs(challenger))
        claim = faster(*runs, min_improvement, looks=noise.looks)
        if noise.drift.steady or math.isnan(claim.estimate):
            return claim
        seen = f"{claim.estimate:+.1%} ({claim.low:+.1%} to {claim.high:+.1%})"
        why = f"no speed is shown, for {noise.drift.why}; seen: {seen}"
        return claim.model_copy(update={"verdict": "undecided", "why": why})

    def beside(self, one: Measurement, other: Measurement) -> bool:
        """Whether both were repeated in the same blocks."""
        both = self.is_repeated(one) and self.is_repeated(other)
        return both and one.noise is not None and one.noise == other.noise

    def runs(self, measurement: Measurement) -> list[float]:
        """Return the figure of every repeat, so that more is better."""
        return [self.speed(repeat.load) for repeat in measurement.repeats]

    def _mean(self, measurement: Measurement) -> float:
        """Return the geometric mean of the repeats; 0 where there are none or one has no figure."""
        runs = self.runs(measurement) if self.is_repeated(measurement) else []
        if not runs or not all(figure > 0 for figure in runs):
            return 0.0
        return math.exp(math.fsum(map(math.log, runs)) / len(runs))

    def _exact(self, rule: str, mine: float, yours: float, between: str) -> Evidence:
        gain = (mine - yours) * (1 if self.goal.greater_is_better else -1)
        share = gain / abs(yours) if yours else 0.0
        # min_improvement may be 0, and a candidate that is only equal replaces nobody.
        better = share > 0 and share >= self.args.min_improvement
        return exact(rule, better, f"{between} (the figures themselves decide)", share)

    def _more_is_better(self, measurement: Measurement) -> bool:
        if self.is_quality:
            return measurement.scores[self.args.metric].greater_is_better
        return self.goal.greater_is_better
