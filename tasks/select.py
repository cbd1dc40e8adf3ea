"""select: measurements and the champion -> a winner, or none, and why.

Limits come first: whoever breaks one is out. Among the others the objective decides. The champion
keeps its place unless it breaks a limit itself, or somebody is better than it beyond doubt in
quality, or by `min_improvement` in the objective without losing quality.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from weighbridge.core.errors import GateFailed
from weighbridge.core.formatting import human_seconds, human_size
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score

VERSION = 1

_ROUNDING = 1e-9
"""0.99 - 0.97 is a little more than 0.02."""

Goal = Literal["throughput", "cost", "latency", "quality", "memory", "size"]
_Z = 1.96
"""Standard errors to either side of a 95 % confidence interval."""


class SelectArgs(BaseModel):
    """Limits that every candidate must keep, and what decides among those that do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(
        "exact_match", min_length=1, description="Label of the metric that means quality."
    )
    floor: float | None = Field(None, description="Worst acceptable value of `metric`.")
    max_loss: float | None = Field(
        0.02,
        ge=0,
        description="How much worse than the unquantized fine-tune `metric` may be, in the "
        "metric's own unit.",
    )
    max_nll_increase: float | None = Field(
        0.05,
        ge=0,
        description="How much higher than the unquantized fine-tune's the negative log-likelihood "
        "per token may be: "
        "it shows damage that the answers don't show yet. Not applied where it was not measured.",
    )
    on_doubt: Literal["accept", "refuse"] = Field(
        "accept",
        description="What to do when a loss is within its limit, but its 95 % confidence interval "
        "reaches beyond.",
    )
    max_ttft_p95: float | None = Field(
        None, gt=0, description="Seconds to the first token, 95th percentile."
    )
    min_tokens_per_second: float | None = Field(
        None, gt=0, description="Output tokens of all streams together."
    )
    max_memory: ByteSize | None = Field(
        None, gt=0, description="Peak of the whole engine: bytes, or `2 GiB`."
    )
    max_size: ByteSize | None = Field(
        None, gt=0, description="Of the artifact: bytes, or `500 MiB`."
    )
    max_cost: float | None = Field(
        None, gt=0, description="Per million output tokens, in the recipe's currency."
    )
    max_errors: float = Field(
        0.0, ge=0, le=1, description="Share of requests under load that may fail."
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        description="Load at which speed counts, one of those weighed; empty: the highest.",
    )
    objective: Goal = Field(
        "throughput", description="What decides among the candidates within the limits."
    )
    min_improvement: float = Field(
        0.05,
        ge=0,
        description="How much better than the champion's the objective must be to take its place: "
        "a share of it "
        "(0.05 is 5 %); for objective `quality` in the metric's own unit.",
    )


class Decision(BaseModel):
    """Who wins, and what is to be said of everybody else."""

    model_config = ConfigDict(frozen=True)

    winner: str | None = Field(
        description="Label of the candidate to release; None where nobody is to be."
    )
    keeps_champion: bool = Field(
        description="What serves goes on serving: it is the winner, or nobody beats it."
    )
    why: str = Field(description="One sentence.")
    reasons: dict[str, str] = Field(
        default_factory=dict, description="Why not: by label, all but the winner."
    )
    refused: list[str] = Field(
        default_factory=list, description="Labels of those outside the limits."
    )
    notes: dict[str, str] = Field(
        default_factory=dict, description="Doubts about those within the limits, by label."
    )
    metric: str = Field("exact_match", description="Label of the metric that meant quality.")
    objective: Goal = "throughput"
    values: dict[str, float] = Field(
        default_factory=dict, description="The objective's figure, by label."
    )
    concurrency: int | None = Field(None, description="Load at which speed counted.")


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
    "latency": _Objective(
        "quickest", "later", False, lambda value: f"p95 TTFT {human_seconds(value)}"
    ),
    "quality": _Objective(
        "best in quality", "worse in quality", True, lambda value: f"{value:.4g}"
    ),
    "memory": _Objective("smallest in memory", "larger in memory", False, human_size),
    "size": _Objective("smallest", "larger", False, human_size),
}


def select(
    measurements: Sequence[Measurement],
    reference: Mapping[str, Score],
    champion: Measurement | None,
    args: SelectArgs,
) -> Decision:
    """Return the winner among the measured candidates, and why not each of the others.

    `reference` are the scores of the unquantized fine-tune. `champion` is how the serving candidate
    was measured (on the same data, if the comparison is to be fair); it is not released anew,
    unless it is one of `measurements`, by label and artifact.
    """
    judge = _Judge(reference, args)
    judged = {one.candidate.label: judge.verdict(one) for one in measurements}
    broken = {label: verdict.refused for label, verdict in judged.items() if verdict.refused}
    within = [one for one in measurements if one.candidate.label not in broken]
    notes = {
        label: verdict.doubt
        for label, verdict in judged.items()
        if verdict.doubt and label not in broken
    }
    ranked = sorted(within, key=judge.rank)
    values = {
        one.candidate.label: value
        for one in measurements
        if (value := judge.objective(one)) is not None
    }
    winner, why = _winner(ranked, measurements, champion, judge)
    same = champion is not None and winner is not None and is_same(winner, champion)
    reasons = {
        **broken,
        **{
            one.candidate.label: judge.why_not(one, winner, champion)
            for one in ranked
            if one != winner
        },
    }
    return Decision(
        winner=winner.candidate.label if winner else None,
        keeps_champion=bool(ranked) and champion is not None and (winner is None or same),
        why=why,
        reasons=reasons,
        refused=list(broken),
        notes=notes,
        metric=args.metric,
        objective=args.objective,
        values=values,
        concurrency=args.concurrency or _highest(measurements),
    )


def require_winner(decision: Decision) -> None:
    """Stop where no candidate is within the limits.

    Raises: GateFailed: naming each candidate's reason. Not raised when the champion just was not
        beaten.
    """
    if decision.winner is None and not decision.keeps_champion:
        reasons = (
            "; ".join(f"{label}: {reason}" for label, reason in decision.reasons.items())
            or "none was measured"
        )
        raise GateFailed(
            "selecting a winner",
            f"no candidate is within the limits ({reasons})",
            "nothing was promoted; what serves goes on serving",
        )


def is_same(one: Measurement, other: Measurement) -> bool:
    """Whether two measurements are of one candidate, whatever options tuning found each time."""
    mine, yours = one.candidate, other.candidate
    return (mine.variant.artifact.digest, mine.engine.kind) == (
        yours.variant.artifact.digest,
        yours.engine.kind,
    )


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
    spread = math.hypot((reference.high - reference.low) / 2, (score.high - score.low) / 2)
    return Loss(value, value - spread, value + spread)


def figures_at(measurement: Measurement, concurrency: int | None) -> LoadFigures | None:
    """Return the load figures at a concurrency; None means the highest that was measured."""
    wanted = concurrency or _highest([measurement])
    return next((load for load in measurement.load if load.concurrency == wanted), None)


def _highest(measurements: Sequence[Measurement]) -> int | None:
    return max((load.concurrency for one in measurements for load in one.load), default=None)


def _winner(
    ranked: list[Measurement],
    measurements: Sequence[Measurement],
    champion: Measurement | None,
    judge: "_Judge",
) -> tuple[Measurement | None, str]:
    if not ranked:
        return None, "No candidate is within the limits" if measurements else "Nothing was measured"
    if champion is None:
        return ranked[0], judge.praise(ranked[0], ranked)
    again = next((one for one in measurements if is_same(one, champion)), None)
    holder = again or champion
    if refused := judge.verdict(holder).refused:
        return ranked[
            0
        ], f"{judge.praise(ranked[0], ranked)}; the champion is out of the limits: {refused}"
    if again is not None and ranked[0] == again:
        return again, f"{judge.praise(again, ranked)}; it is the champion already"
    for one in ranked:
        if one != again and (better := judge.beats(one, holder)):
            return one, f"{one.candidate.label} takes the champion's place: {better}"
    return (
        again,
        f"Nobody beats the champion ({holder.candidate.label}, {judge.shown(holder)}) by enough",
    )


@dataclass(frozen=True)
class _Verdict:
    refused: str = ""
    doubt: str = ""


class _Judge:
    """Applies one set of limits and one objective."""

    def __init__(self, reference: Mapping[str, Score], args: SelectArgs) -> None:
        self.reference = reference
        self.args = args
        self.goal = _OBJECTIVES[args.objective]

    def verdict(self, one: Measurement) -> _Verdict:
        """Everything that is wrong with a candidate, and what is in doubt."""
        if one.failure:
            return _Verdict(f"could not be measured: {' '.join(one.failure.split())}")
        quality = [self._floor(one), *self._losses(one)]
        wrong = [
            *(item.refused for item in quality),
            *self._speed(one),
            *self._footprint(one),
            self._unknown(one),
        ]
        refused, doubt = (_joined(part) for part in (wrong, (item.doubt for item in quality)))
        return _Verdict(refused, doubt)

    def _floor(self, one: Measurement) -> _Verdict:
        label, floor = self.args.metric, self.args.floor
        score = one.scores.get(label)
        if score is None:
            known = ", ".join(one.scores) or "none"
            return _Verdict(f"its {label} was not measured (measured: {known})")
        if not math.isfinite(score.value):
            return _Verdict(f"its {label} is not a number")
        if floor is not None and (
            score.value < floor if score.greater_is_better else score.value > floor
        ):
            side = "below" if score.greater_is_better else "above"
            return _Verdict(f"{label} {score.value:.4g} is {side} the limit {floor:.4g}")
        return _Verdict()

    def _losses(self, one: Measurement) -> list[_Verdict]:
        nll = (
            [self._loss(one, "nll", self.args.max_nll_increase)]
            if self.args.metric != "nll"
            else []
        )
        return [self._loss(one, self.args.metric, self.args.max_loss), *nll]

    def _loss(self, one: Measurement, label: str, limit: float | None) -> _Verdict:
        before, after = self.reference.get(label), one.scores.get(label)
        if limit is None or before is None or after is None:
            return _Verdict()
        if not (math.isfinite(before.value) and math.isfinite(after.value)):
            return _Verdict("" if label == self.args.metric else f"its {label} is not a number")
        lost = loss(before, after)
        words = (
            f"{label} is {abs(lost.value):.3g} worse than the unquantized fine-tune's "
            f"{before.value:.4g}"
        )
        if lost.value > limit + _ROUNDING:
            return _Verdict(f"{words} (allowed: {limit:.3g})")
        if lost.high > limit + _ROUNDING:
            reference = f"the unquantized fine-tune's (allowed: {limit:.3g})"
            doubt = f"{label} may be up to {lost.high:.3g} worse than {reference}"
            return _Verdict(
                f"{doubt}: too few rows to be sure" if self.args.on_doubt == "refuse" else "", doubt
            )
        return _Verdict()

    def _speed(self, one: Measurement) -> list[str]:
        args, load = self.args, figures_at(one, self.args.concurrency)
        if load is None:
            wanted = f"at concurrency {args.concurrency} " if args.concurrency else ""
            return [f"its speed {wanted}was not measured"]
        at, wrong = f"at concurrency {load.concurrency}", []
        if (share := load.errors / max(load.requests, 1)) > args.max_errors:
            wrong.append(
                f"{load.errors} of {load.requests} requests failed {at} (allowed: "
                f"{args.max_errors:.0%})"
            )
        elif not math.isfinite(share):
            wrong.append(f"its errors {at} are not a number")
        if args.max_ttft_p95 is not None and not load.ttft_p95 <= args.max_ttft_p95:
            limit = human_seconds(args.max_ttft_p95)
            wrong.append(f"p95 TTFT {human_seconds(load.ttft_p95)} {at} is above the limit {limit}")
        if (
            args.min_tokens_per_second is not None
            and not load.tokens_per_second >= args.min_tokens_per_second
        ):
            limit = f"{args.min_tokens_per_second:,.0f}"
            wrong.append(f"{load.tokens_per_second:,.0f} tokens/s {at} is below the limit {limit}")
        return wrong

    def _footprint(self, one: Measurement) -> list[str]:
        args, size, cost = (
            self.args,
            one.candidate.variant.artifact.size,
            one.cost_per_million_tokens,
        )
        wrong = []
        if args.max_memory is not None and one.peak_memory > args.max_memory:
            wrong.append(
                f"{human_size(one.peak_memory)} of memory is above the limit "
                f"{human_size(args.max_memory)}"
            )
        if args.max_size is not None and size > args.max_size:
            wrong.append(
                f"its size {human_size(size)} is above the limit {human_size(args.max_size)}"
            )
        if args.max_cost is not None and cost is not None and not cost <= args.max_cost:
            wrong.append(f"{cost:,.4g} per million tokens is above the limit {args.max_cost:,.4g}")
        if args.max_cost is not None and cost is None:
            wrong.append(_NO_COST)
        return wrong

    def _unknown(self, one: Measurement) -> str:
        """Nothing can win on an objective that is not known of it; what another limit says already
        is left out.
        """
        goal = self.args.objective
        said = goal == "quality" or (goal == "cost" and self.args.max_cost is not None)
        unweighed = (
            goal in ("throughput", "latency") and figures_at(one, self.args.concurrency) is None
        )
        if said or unweighed or self.objective(one) is not None:
            return ""
        return _NO_COST if goal == "cost" else f"its {goal} is not known"

    def objective(self, one: Measurement) -> float | None:
        """The figure that decides; None where it is not known."""
        load, score = figures_at(one, self.args.concurrency), one.scores.get(self.args.metric)
        known: Mapping[Goal, float | None] = {
            "throughput": load.tokens_per_second if load else None,
            "latency": load.ttft_p95 if load else None,
            "cost": one.cost_per_million_tokens,
            "quality": score.value if score else None,
            "memory": one.peak_memory or None,
            "size": one.candidate.variant.artifact.size,
        }
        value = known[self.args.objective]
        return (
            float(value) if not one.failure and value is not None and math.isfinite(value) else None
        )

    def shown(self, one: Measurement) -> str:
        value = self.objective(one)
        return "unknown" if value is None else self.goal.shown(value)

    def rank(self, one: Measurement) -> tuple[float, float, int, str]:
        """Best first: by the objective, then quality, then size, then name."""
        value, score = self.objective(one), one.scores[self.args.metric]
        first = -(value or 0.0) if self._more_is_better(one) else (value or 0.0)
        second = -score.value if score.greater_is_better else score.value
        return first, second, one.candidate.variant.artifact.size, one.candidate.label

    def _more_is_better(self, one: Measurement) -> bool:
        if self.args.objective == "quality":
            return one.scores[self.args.metric].greater_is_better
        return self.goal.greater_is_better

    def praise(self, one: Measurement, ranked: Sequence[Measurement]) -> str:
        load = figures_at(one, self.args.concurrency)
        at = (
            f" at concurrency {load.concurrency}"
            if load and self.args.objective in ("throughput", "latency")
            else ""
        )
        figure = f"{self.shown(one)}{at}"
        if len(ranked) == 1:
            return f"{one.candidate.label} is the only candidate within the limits ({figure})"
        return (
            f"{one.candidate.label} is the {self.goal.best} ({figure}) of {len(ranked)} "
            "candidates within the limits"
        )

    def beats(self, one: Measurement, holder: Measurement) -> str:
        """In what a candidate is better than the champion by enough; empty where it is not."""
        label = self.args.metric
        mine, yours = one.scores.get(label), holder.scores.get(label)
        lost = loss(yours, mine) if mine and yours else None
        if mine and yours and lost and lost.high < 0:
            return f"its {label} is {mine.value:.4g} against {yours.value:.4g}, beyond doubt better"
        if lost and self.args.max_loss is not None and lost.value > self.args.max_loss + _ROUNDING:
            return ""
        gain = self._gain(one, holder)
        if gain is not None and gain > 0 and gain >= self.args.min_improvement:
            return f"{self.shown(one)} against {self.shown(holder)}"
        return ""

    def _gain(self, one: Measurement, holder: Measurement) -> float | None:
        mine, yours = self.objective(one), self.objective(holder)
        if mine is None or yours is None:
            return None
        gain = mine - yours if self._more_is_better(one) else yours - mine
        return gain if self.args.objective == "quality" else gain / abs(yours) if yours else 0.0

    def why_not(
        self, one: Measurement, winner: Measurement | None, champion: Measurement | None
    ) -> str:
        """Of a candidate within the limits that does not win."""
        best = winner or champion
        if best is None:
            return "not the winner"
        against = f"{self.shown(one)} against {self.shown(best)}"
        if self.rank(one)[0] > self.rank(best)[0]:
            return f"{self.goal.worse}: {against}"
        if self.rank(one)[0] == self.rank(best)[0]:
            return f"no better: {against}"
        wanted = (
            f"{self.args.min_improvement:.3g}"
            if self.args.objective == "quality"
            else f"{self.args.min_improvement:.0%}"
        )
        return f"not better than the champion by {wanted} without losing quality: {against}"


_NO_COST = "its cost is not known: set weigh.price_per_hour"


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if part)
