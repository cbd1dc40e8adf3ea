"""Limits: what a candidate has to keep, and what the measurements say of each.

A floor and a loss are kept where the whole interval is on the right side (`select.on_doubt`), a
speed, a size and a cost where the figure is.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from weighbridge.core.formatting import figure, human_seconds, human_size, one_line
from weighbridge.serving.latencies import Latencies
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.scoring import worse_by
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.evidence import Evidence, Rows, all_of, exact, reasons, unknown
from weighbridge.tasks.selection.fault_limits import faults_within
from weighbridge.tasks.selection.objective import NO_COST, Objective, figures_at
from weighbridge.tasks.selection.score_limit import beyond, how_seen, needed_rows
from weighbridge.tasks.statistics.paired import not_worse
from weighbridge.tasks.statistics.quantiles import limit_verdict
from weighbridge.tasks.statistics.verdict import Verdict

_ROUNDING = 1e-9
"""0.99 - 0.97 is a little more than 0.02."""


@dataclass(frozen=True)
class Standing:
    """How a candidate stands with all limits on one split."""

    verdict: Verdict
    why: str
    """Which limits it breaks, or which may be broken; empty where all are kept."""
    evidence: list[Evidence] = field(default_factory=list)
    seen: bool = True
    """Whether every estimate keeps its limit."""

    @property
    def likely(self) -> int:
        """Return 0 where all is shown, 1 where the estimates keep the limits, else 2."""
        return 0 if self.verdict == "shown" else 1 if self.seen else 2


class Limits:
    """Applies the limits of one recipe."""

    def __init__(self, args: SelectArgs, answer_tokens: Mapping[str, float] | None = None) -> None:
        """Take the limits, and the mean tokens of the unquantized weights' answers by split."""
        self.args = args
        self.answer_tokens = answer_tokens or {}
        self.objective = Objective(args)

    def standing(
        self, measurement: Measurement, rows: Rows, reference: Mapping[str, Score]
    ) -> Standing:
        """Return how a candidate stands on a split; `reference` are the scores of its own
        unquantized weights there, none of a model whose weights are another's.
        """
        if measurement.failure:
            why = f"could not be measured: {one_line(measurement.failure)}"
            return Standing("refuted", why, [exact("measured", False, why)], seen=False)
        scores = measurement.test_scores if rows == "test" else measurement.scores
        evidence = [
            *self._quality(measurement, scores, rows, reference),
            *faults_within(measurement, rows, self.args),
            *self._same_work(measurement, rows, reference),
            *self._speed(measurement),
            *self._footprint(measurement),
        ]
        verdict = all_of(evidence)
        said = "" if verdict == "shown" else reasons(evidence, verdict)
        return Standing(verdict, said, evidence, all(piece.seen for piece in evidence))

    def passes(self, standing: Standing) -> bool:
        """Whether a candidate may be released: what is undecided is not, unless doubt is accepted
        and the estimates are within the limits.
        """
        doubt = self.args.on_doubt == "accept" and standing.seen
        return standing.verdict == "shown" or (standing.verdict == "undecided" and doubt)

    def _quality(
        self,
        measurement: Measurement,
        scores: Mapping[str, Score],
        rows: Rows,
        reference: Mapping[str, Score],
    ) -> Iterator[Evidence]:
        label, score = self.args.metric, scores.get(self.args.metric)
        if score is None and label in measurement.uncounted:
            yield unknown("metric", f"its {label} is not known: {measurement.uncounted[label]}")
        elif score is None:
            measured = ", ".join(scores) or "none"
            where = " on the test split" if rows == "test" else ""
            yield exact(
                "metric", False, f"its {label} was not measured{where} (measured: {measured})"
            )
        elif not math.isfinite(score.value):
            yield exact("metric", False, f"its {label} is not a number")
        else:
            yield from self._floor(score, rows)
            yield from self._loss("max_loss", label, scores, rows, reference)
        if label != "nll":
            yield from self._loss("max_nll_increase", "nll", scores, rows, reference)
        if self.args.max_kl is not None and reference:
            yield _divergence(measurement, scores, self.args.max_kl, rows)

    def _floor(self, score: Score, rows: Rows) -> Iterator[Evidence]:
        label, floor = self.args.metric, self.args.floor
        if floor is None:
            return
        yield beyond("floor", label, score, floor, rows)

    def _loss(
        self,
        rule: str,
        label: str,
        scores: Mapping[str, Score],
        rows: Rows,
        reference: Mapping[str, Score],
    ) -> Iterator[Evidence]:
        limit = self.args.max_loss if rule == "max_loss" else self.args.max_nll_increase
        before, after = reference.get(label), scores.get(label)
        if limit is None or before is None or after is None:
            return
        if not (math.isfinite(before.value) and math.isfinite(after.value)):
            yield exact(rule, False, f"its {label} is not a number")
            return
        lost = worse_by(before, after)
        claim = not_worse(before, after, limit)
        allowed = f"(allowed: {figure(limit)}{how_seen(claim)})"
        than = f"than the unquantized model's {figure(before.value, 4)} {allowed}"
        words = {
            "refuted": f"{label} is {figure(abs(lost))} worse {than}",
            "undecided": f"undecided: {label} may be up to {figure(-claim.low)} worse {than}"
            f"{needed_rows(claim)}",
            "shown": f"{label} is at most {figure(max(-claim.low, 0))} worse {than}",
        }
        yield Evidence(
            rule=rule,
            rows=rows,
            claim=claim.model_copy(update={"why": words[claim.verdict]}),
            seen=lost <= limit + _ROUNDING,
        )

    def _same_work(
        self, measurement: Measurement, rows: Rows, reference: Mapping[str, Score]
    ) -> Iterator[Evidence]:
        """Compare the length of the answers, as MLPerf Inference does: 90 to 110 % of the
        reference's mean, else tokens per second are of other work.
        """
        limit = self.args.max_length_change
        before, after = self.answer_tokens.get(rows), measurement.answer_tokens.get(rows)
        # Of a model whose weights are another's, there is nothing to compare with.
        if limit is None or not before or after is None or not reference:
            return
        change = after / before - 1
        why = (
            f"its answers have {figure(after)} tokens, the unquantized model's {figure(before)} "
            f"(allowed: {1 - limit:.0%} to {1 + limit:.0%} of that)"
        )
        yield exact("max_length_change", abs(change) <= limit + _ROUNDING, why, change)

    def _speed(self, measurement: Measurement) -> Iterator[Evidence]:
        args, load = self.args, figures_at(measurement, self.args.concurrency)
        if load is None:
            where = f"at concurrency {args.concurrency} " if args.concurrency else ""
            yield exact("concurrency", False, f"its speed {where}was not measured")
            return
        yield self._errors(load)
        at = f"at concurrency {load.concurrency}"
        if (most := args.max_ttft_p95) is not None:
            yield _first_token(load, most)
        if (least := args.min_tokens_per_second) is not None:
            seen = f"{load.tokens_per_second:,.0f} tokens/s {at}"
            yield _least(
                "min_tokens_per_second", load.tokens_per_second, least, seen, f"{least:,.0f}"
            )
        if (least := args.min_requests_per_second) is not None:
            seen = f"{figure(load.requests_per_second)} requests/s {at}"
            yield _least(
                "min_requests_per_second", load.requests_per_second, least, seen, figure(least)
            )
        if missing := self.objective.missing(measurement):
            yield exact("objective", False, missing)

    def _errors(self, load: LoadFigures) -> Evidence:
        share, most = load.errors / max(load.requests, 1), self.args.max_errors
        where = f"at concurrency {load.concurrency}"
        if not math.isfinite(share):
            return exact("max_errors", False, f"its errors {where} are not a number")
        why = f"{load.errors} of {load.requests} requests failed {where} (allowed: {most:.0%})"
        why += f"; the first: {load.first_error}" if load.first_error else ""
        return exact("max_errors", share <= most, why, share)

    def _footprint(self, measurement: Measurement) -> Iterator[Evidence]:
        args, size = self.args, measurement.candidate.variant.artifact.size
        memory = measurement.peak_memory
        for rule, limit, cost, per in (
            ("max_cost", args.max_cost, measurement.cost_per_million_tokens, "million tokens"),
            (
                "max_request_cost",
                args.max_request_cost,
                measurement.cost_per_thousand_requests,
                "1,000 requests",
            ),
        ):
            if limit is not None and cost is None:
                yield exact(rule, False, NO_COST)
            elif limit is not None and cost is not None:
                yield _most(rule, cost, limit, f"{figure(cost, 4)} per {per}", figure(limit, 4))
        if (most := args.max_memory) is not None:
            seen = f"{human_size(memory)} of memory"
            yield _most("max_memory", memory, most, seen, human_size(most))
        if (most := args.max_size) is not None:
            yield _most("max_size", size, most, f"its size {human_size(size)}", human_size(most))


def _divergence(
    measurement: Measurement, scores: Mapping[str, Score], most: float, rows: Rows
) -> Evidence:
    if "kl" in scores:
        return beyond("max_kl", "kl", scores["kl"], most, rows)
    why = measurement.uncounted.get("kl", "it was not measured")
    return unknown("max_kl", f"its kl is not known: {why}")


# `value <= limit` and not `not value > limit`: a figure that is no number breaks the limit, too.
def _most(rule: str, value: float, limit: float, seen: str, shown: str) -> Evidence:
    kept = value <= limit
    return exact(rule, kept, f"{seen} is {'within' if kept else 'above'} the limit {shown}", value)


def _first_token(load: LoadFigures, most: float) -> Evidence:
    at, rule = f"at concurrency {load.concurrency}", "max_ttft_p95"
    if load.ttft_p95 is None:
        without = load.ttft.open_count + load.ttft.never if load.ttft else load.requests
        total = load.ttft.total if load.ttft else load.requests
        why = f"its p95 TTFT {at} is not known: {without} of {total} requests got no first token"
        return exact(rule, False, why)
    seen = f"p95 TTFT {human_seconds(load.ttft_p95)} {at}"
    if load.ttft is not None:
        return _decided_first_token(load, load.ttft, most, seen)
    # An older record: the percentile alone is known.
    return _most(rule, load.ttft_p95, most, seen, human_seconds(most))


def _decided_first_token(
    load: LoadFigures, latencies: Latencies, most: float, seen: str
) -> Evidence:
    claim = limit_verdict(latencies, most)
    words = {
        "shown": f"{seen} is within the limit {human_seconds(most)}",
        "refuted": f"{seen} is above the limit {human_seconds(most)}",
        "undecided": f"undecided: {seen} may be above the limit {human_seconds(most)}"
        + (f"; {claim.needed:,} requests would decide" if claim.needed else ""),
    }
    why = f"{words[claim.verdict]} ({claim.why})"
    return Evidence(
        rule="max_ttft_p95",
        claim=claim.model_copy(update={"why": why}),
        seen=load.ttft_p95 is not None and load.ttft_p95 <= most,
    )


def _least(rule: str, value: float, limit: float, seen: str, shown: str) -> Evidence:
    kept = value >= limit
    return exact(rule, kept, f"{seen} is {'within' if kept else 'below'} the limit {shown}", value)
