"""The rules by which `select` decides: limits, the objective, and when one beats another."""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from weighbridge.core.formatting import human_seconds, human_size
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select_args import Goal, SelectArgs

_ROUNDING = 1e-9
"""0.99 - 0.97 is a little more than 0.02."""
_Z = 1.96
"""Standard errors to either side of a 95 % confidence interval."""
_OF_LOAD: Collection[Goal] = ("throughput", "requests", "latency")
"""Objectives of one concurrency."""
_NO_COST = "its cost is not known: set weigh.price_per_hour"


@dataclass(frozen=True)
class Loss:
    """By how much a score is worse than another, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Objective:
    best: str
    """As an adjective: `fastest`."""
    worse: str
    greater_is_better: bool
    shown: Callable[[float], str]


_OBJECTIVES: Mapping[Goal, _Objective] = {
    "throughput": _Objective("fastest", "slower", True, lambda value: f"{value:,.0f} tokens/s"),
    "cost": _Objective(
        "cheapest", "dearer", False, lambda value: f"{value:,.4g} per million tokens"
    ),
    "requests": _Objective("fastest", "slower", True, lambda value: f"{value:,.3g} requests/s"),
    "request_cost": _Objective(
        "cheapest", "dearer", False, lambda value: f"{value:,.4g} per 1,000 requests"
    ),
    "latency": _Objective(
        "quickest", "later", False, lambda value: f"p95 TTFT {human_seconds(value)}"
    ),
    "quality": _Objective(
        "best in quality", "worse in quality", True, lambda value: f"{value:.4g}"
    ),
    "memory": _Objective("smallest in memory", "larger in memory", False, human_size),
    "size": _Objective("smallest", "larger", False, human_size),
}


def loss(reference: Score, score: Score) -> Loss:
    """Return by how much `score` is worse, with its interval.

    Where both have the same rows it is taken row by row: their noise is shared, and cancels.
    """
    sign = 1.0 if reference.greater_is_better else -1.0
    value = sign * (reference.value - score.value)
    ours, theirs = score.per_example, reference.per_example
    if len(ours) == len(theirs) and len(ours) > 1:
        differences = [sign * (before - after) for before, after in zip(theirs, ours, strict=True)]
        if all(math.isfinite(difference) for difference in differences):
            spread = _Z * statistics.stdev(differences) / math.sqrt(len(differences))
            return Loss(value, value - spread, value + spread)
    # Without the rows, the two errors are taken as independent: they add in squares.
    spread = math.hypot((reference.high - reference.low) / 2, (score.high - score.low) / 2)
    return Loss(value, value - spread, value + spread)


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


@dataclass(frozen=True)
class Objections:
    """What is to be said against a candidate."""

    refused: str | None = None
    """Which limits it breaks."""
    doubt: str | None = None
    """Which limits it may break: there are too few rows to be sure."""


class SelectionRules:
    """Applies one set of limits and one objective."""

    def __init__(self, reference: Mapping[str, Score], args: SelectArgs) -> None:
        self.reference = reference
        self.args = args
        self.goal = _OBJECTIVES[args.objective]

    def objections(self, measurement: Measurement) -> Objections:
        """Return everything that is wrong with a candidate, and what is in doubt."""
        if measurement.failure:
            return Objections(f"could not be measured: {' '.join(measurement.failure.split())}")
        quality = [self._floor(measurement), *self._losses(measurement)]
        wrong = [
            *(objection.refused for objection in quality),
            *self._speed(measurement),
            *self._footprint(measurement),
            self._unknown(measurement),
        ]
        refused, doubt = (
            _joined(part) for part in (wrong, (objection.doubt for objection in quality))
        )
        return Objections(refused, doubt)

    def _floor(self, measurement: Measurement) -> Objections:
        label, floor = self.args.metric, self.args.floor
        score = measurement.scores.get(label)
        if score is None:
            measured = ", ".join(measurement.scores) or "none"
            return Objections(f"its {label} was not measured (measured: {measured})")
        if not math.isfinite(score.value):
            return Objections(f"its {label} is not a number")
        if floor is not None and (
            score.value < floor if score.greater_is_better else score.value > floor
        ):
            side = "below" if score.greater_is_better else "above"
            return Objections(f"{label} {score.value:.4g} is {side} the limit {floor:.4g}")
        return Objections()

    def _losses(self, measurement: Measurement) -> list[Objections]:
        nll = (
            [self._loss(measurement, "nll", self.args.max_nll_increase)]
            if self.args.metric != "nll"
            else []
        )
        return [self._loss(measurement, self.args.metric, self.args.max_loss), *nll]

    def _loss(self, measurement: Measurement, label: str, limit: float | None) -> Objections:
        before, after = self.reference.get(label), measurement.scores.get(label)
        if limit is None or before is None or after is None:
            return Objections()
        if not (math.isfinite(before.value) and math.isfinite(after.value)):
            # Of the metric itself, `_floor` says it.
            return Objections(None if label == self.args.metric else f"its {label} is not a number")
        lost = loss(before, after)
        difference = (
            f"{label} is {abs(lost.value):.3g} worse than the unquantized model's "
            f"{before.value:.4g}"
        )
        if lost.value > limit + _ROUNDING:
            return Objections(f"{difference} (allowed: {limit:.3g})")
        if lost.high > limit + _ROUNDING:
            reference = f"the unquantized model's (allowed: {limit:.3g})"
            doubt = f"{label} may be up to {lost.high:.3g} worse than {reference}"
            refused = (
                f"{doubt}: too few rows to be sure" if self.args.on_doubt == "refuse" else None
            )
            return Objections(refused, doubt)
        return Objections()

    def _speed(self, measurement: Measurement) -> list[str]:
        args, load = self.args, figures_at(measurement, self.args.concurrency)
        if load is None:
            where = f"at concurrency {args.concurrency} " if args.concurrency else ""
            return [f"its speed {where}was not measured"]
        at, wrong = f"at concurrency {load.concurrency}", []
        if (share := load.errors / max(load.requests, 1)) > args.max_errors:
            wrong.append(
                f"{load.errors} of {load.requests} requests failed {at} (allowed: "
                f"{args.max_errors:.0%})"
            )
        elif not math.isfinite(share):
            wrong.append(f"its errors {at} are not a number")
        # `not … <=`, here and below: a figure that is no number breaks the limit, too.
        if args.max_ttft_p95 is not None:
            wrong += _ttft_beyond(load, args.max_ttft_p95)
        if (
            args.min_tokens_per_second is not None
            and not load.tokens_per_second >= args.min_tokens_per_second
        ):
            limit = f"{args.min_tokens_per_second:,.0f}"
            wrong.append(f"{load.tokens_per_second:,.0f} tokens/s {at} is below the limit {limit}")
        least = args.min_requests_per_second
        if least is not None and not load.requests_per_second >= least:
            wrong.append(
                f"{load.requests_per_second:,.3g} requests/s {at} is below the limit {least:,.3g}"
            )
        return wrong

    def _footprint(self, measurement: Measurement) -> list[str]:
        args, size = self.args, measurement.candidate.variant.artifact.size
        wrong = self._costs(measurement)
        if args.max_memory is not None and measurement.peak_memory > args.max_memory:
            wrong.append(
                f"{human_size(measurement.peak_memory)} of memory is above the limit "
                f"{human_size(args.max_memory)}"
            )
        if args.max_size is not None and size > args.max_size:
            wrong.append(
                f"its size {human_size(size)} is above the limit {human_size(args.max_size)}"
            )
        return wrong

    def _costs(self, measurement: Measurement) -> list[str]:
        wrong = []
        for limit, cost, per in (
            (self.args.max_cost, measurement.cost_per_million_tokens, "million tokens"),
            (self.args.max_request_cost, measurement.cost_per_thousand_requests, "1,000 requests"),
        ):
            if limit is None:
                continue
            if cost is None:
                wrong.append(_NO_COST)
            elif not cost <= limit:
                wrong.append(f"{cost:,.4g} per {per} is above the limit {limit:,.4g}")
        return list(dict.fromkeys(wrong))

    def _unknown(self, measurement: Measurement) -> str | None:
        """Return that the objective's figure is not known: nothing can win on it then.

        None where it is known, or where another limit says so already.
        """
        goal = self.args.objective
        limited = {"cost": self.args.max_cost, "request_cost": self.args.max_request_cost}
        covered = goal == "quality" or limited.get(goal) is not None
        unweighed = goal in _OF_LOAD and figures_at(measurement, self.args.concurrency) is None
        if covered or unweighed or self.objective(measurement) is not None:
            return None
        return _NO_COST if goal in limited else f"its {goal} is not known"

    def objective(self, measurement: Measurement) -> float | None:
        """Return the figure that decides; None where it is not known."""
        load, score = (
            figures_at(measurement, self.args.concurrency),
            measurement.scores.get(self.args.metric),
        )
        figures: Mapping[Goal, float | None] = {
            "throughput": load.tokens_per_second if load else None,
            "requests": load.requests_per_second if load else None,
            "latency": load.ttft_p95 if load else None,
            "request_cost": measurement.cost_per_thousand_requests,
            "cost": measurement.cost_per_million_tokens,
            "quality": score.value if score else None,
            # 0 where no sample was taken.
            "memory": measurement.peak_memory or None,
            "size": measurement.candidate.variant.artifact.size,
        }
        value = figures[self.args.objective]
        return (
            float(value)
            if not measurement.failure and value is not None and math.isfinite(value)
            else None
        )

    def shown(self, measurement: Measurement) -> str:
        """Return the figure that decides, for a person."""
        value = self.objective(measurement)
        return "unknown" if value is None else self.goal.shown(value)

    def rank(self, measurement: Measurement) -> tuple[float, float, int, str]:
        """Return a key that sorts the best first: by objective, then quality, size and name."""
        value, score = self.objective(measurement), measurement.scores[self.args.metric]
        first = -(value or 0.0) if self._more_is_better(measurement) else (value or 0.0)
        second = -score.value if score.greater_is_better else score.value
        return (
            first,
            second,
            measurement.candidate.variant.artifact.size,
            # So that equal figures give the same winner every time.
            measurement.candidate.label,
        )

    def _more_is_better(self, measurement: Measurement) -> bool:
        if self.args.objective == "quality":
            return measurement.scores[self.args.metric].greater_is_better
        return self.goal.greater_is_better

    def praise(self, measurement: Measurement, ranked: Sequence[Measurement]) -> str:
        """Return what makes the first of those within the limits the best."""
        load = figures_at(measurement, self.args.concurrency)
        at = (
            f" at concurrency {load.concurrency}"
            if load and self.args.objective in _OF_LOAD
            else ""
        )
        figure = f"{self.shown(measurement)}{at}"
        if len(ranked) == 1:
            return (
                f"{measurement.candidate.label} is the only candidate within the limits ({figure})"
            )
        return (
            f"{measurement.candidate.label} is the {self.goal.best} ({figure}) of {len(ranked)} "
            "candidates within the limits"
        )

    def beats(self, measurement: Measurement, champion: Measurement) -> str | None:
        """Return in what a candidate is better than the champion by enough; None if it is not."""
        label = self.args.metric
        mine, yours = measurement.scores.get(label), champion.scores.get(label)
        lost = loss(yours, mine) if mine and yours else None
        if mine and yours and lost and lost.high < 0:
            return f"its {label} is {mine.value:.4g} against {yours.value:.4g}, beyond doubt better"
        if lost and self.args.max_loss is not None and lost.value > self.args.max_loss + _ROUNDING:
            return None
        gain = self._gain(measurement, champion)
        # min_improvement may be 0, and a candidate that is only equal replaces nobody.
        if gain is not None and gain > 0 and gain >= self.args.min_improvement:
            return f"{self.shown(measurement)} against {self.shown(champion)}"
        return None

    def _gain(self, measurement: Measurement, champion: Measurement) -> float | None:
        mine, yours = self.objective(measurement), self.objective(champion)
        if mine is None or yours is None:
            return None
        gain = mine - yours if self._more_is_better(measurement) else yours - mine
        return gain if self.args.objective == "quality" else gain / abs(yours) if yours else 0.0

    def why_not(
        self, measurement: Measurement, winner: Measurement | None, champion: Measurement | None
    ) -> str:
        """Return why a candidate within the limits does not win."""
        best = winner or champion
        if best is None:
            return "not the winner"
        comparison = f"{self.shown(measurement)} against {self.shown(best)}"
        if self.rank(measurement)[0] > self.rank(best)[0]:
            return f"{self.goal.worse}: {comparison}"
        if self.rank(measurement)[0] == self.rank(best)[0]:
            return f"no better: {comparison}"
        margin = (
            f"{self.args.min_improvement:.3g}"
            if self.args.objective == "quality"
            else f"{self.args.min_improvement:.0%}"
        )
        return f"not better than the champion by {margin} without losing quality: {comparison}"


def _ttft_beyond(load: LoadFigures, limit: float) -> list[str]:
    at = f"at concurrency {load.concurrency}"
    if load.ttft_p95 is None:
        return [f"its p95 TTFT {at} is not known: {_unanswered(load)}"]
    # `not … <=`: a figure that is no number breaks the limit, too.
    if not load.ttft_p95 <= limit:
        seen = human_seconds(load.ttft_p95)
        return [f"p95 TTFT {seen} {at} is above the limit {human_seconds(limit)}"]
    return []


def _unanswered(load: LoadFigures) -> str:
    """Return why a percentile of the first token is not known."""
    without = load.ttft.open_count + load.ttft.never if load.ttft else load.requests
    total = load.ttft.total if load.ttft else load.requests
    return f"{without} of {total} requests got no first token"


def _joined(parts: Iterable[str | None]) -> str | None:
    return "; ".join(part for part in parts if part is not None) or None
