"""The report of a weighing: what was measured of every candidate, who won, and why not the others.

It comes as Markdown for Prefect and MLflow, as a page that needs nothing else, as a chart, and as
rows for a terminal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from weighbridge.core.formatting import UNKNOWN, figure, human_size
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.engine_use import engine_use_rows
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.report_changes import other_objectives
from weighbridge.tasks.report_chart import draw, title_of
from weighbridge.tasks.report_latencies import goodput, latency_rows, seconds, told
from weighbridge.tasks.report_page import Page, Section, html, markdown
from weighbridge.tasks.report_quality import fault_rows, score_notes, slice_rows, what_is_counted
from weighbridge.tasks.report_sections import differing_answers, evidence_rows, on_test_rows
from weighbridge.tasks.select import Decision
from weighbridge.tasks.select_args import Goal, SelectArgs
from weighbridge.tasks.statistics.repeats import mean_interval

_Figure = Callable[[LoadFigures], float | None]
_TOKENS: Final[tuple[str, _Figure]] = ("tokens/s", lambda load: load.tokens_per_second)
_REQUESTS: Final[tuple[str, _Figure]] = ("requests/s", lambda load: load.requests_per_second)
_REPEATED: Final[Mapping[Goal, tuple[str, _Figure]]] = {
    "requests": _REQUESTS,
    "request_cost": _REQUESTS,
    "latency": ("TTFT p95 in s", lambda load: load.ttft_p95),
}
"""What repeats are of, by objective; of others, tokens."""
_WON, _LOST = "winner", "not among those that were compared"
UNITS: Final = {
    "size": "bytes",
    "peak_memory": "bytes",
    "load_seconds": "seconds",
    "seconds": "seconds",
    "ttft_p50": "seconds",
    "ttft_p95": "seconds",
    "ttft_p95_interval": "seconds, both ends; null: above all that were seen",
    "tpot_p95_interval": "seconds, both ends; null: above all that were seen",
    "itl_p50": "seconds",
    "itl_p95": "seconds",
    "tpot_p50": "seconds",
    "tpot_p95": "seconds",
    "lag_p95": "seconds",
    "warm_up_seconds": "seconds",
    "cpu_seconds": "processor time of the engine's processes in the whole run, in seconds",
    "rate": "requests per second that were sent",
    "goodput": "requests per second that were answered whole and kept the limits",
    "answer_tokens": "output tokens of an answer, mean",
    "tokens_per_second": "output tokens per second, all streams together",
    "requests_per_second": "requests per second, all streams together",
}
"""Of the figures in `WeighingReport.figures`, for programs; the price has the recipe's."""


class Compared(Protocol):
    """Scores before and after fine-tuning: what the stage evaluate returns."""

    @property
    def base(self) -> Mapping[str, Score]: ...

    @property
    def finetuned(self) -> Mapping[str, Score]: ...

    @property
    def test(self) -> Mapping[str, Score]: ...


@dataclass(frozen=True)
class WeighingReport:
    """The report of one weighing, in every form it is shown in."""

    page: Page
    markdown: str
    html: str
    chart: bytes
    """PNG."""
    figures: list[dict[str, Any]] = field(default_factory=list)
    """The rows as numbers, for programs: see `UNITS`."""

    def save(self, folder: Path) -> list[Path]:
        """Write `report.md`, `report.html`, `report.png`, and `report.json`, the page as data."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"report.{form}" for form in ("md", "html", "png", "json")]
        files[0].write_text(self.markdown)
        files[1].write_text(self.html)
        files[2].write_bytes(self.chart)
        files[3].write_text(self.page.model_dump_json(indent=1))
        return files


def weighing_report(
    decision: Decision,
    measurements: Sequence[Measurement],
    evaluated: Compared | None,
    name: str,
    args: SelectArgs,
    *,
    champion: Measurement | None = None,
    reference: Mapping[str, Score] | None = None,
    asked: Sequence[Section] = (),
    sections: Sequence[Section] = (),
    facts: Mapping[str, str] | None = None,
    currency: str = "USD",
) -> WeighingReport:
    """Return everything that a reader of the weighing wants to know.

    Args:
        decision: who won.
        measurements: of every candidate.
        evaluated: base and fine-tuned model; None where nothing was fine-tuned.
        name: of the recipe.
        args: the limits and the objective that decided.
        champion: what served, if it was weighed and is another one: its answers are shown beside
            those of the finalist.
        reference: scores of the unquantized weights, from which losses count.
        asked: what was asked for, shown first.
        sections: shown after the decision.
        facts: what was weighed: recipe, base model, data, digests. The machine is taken from the
            measurements.
        currency: of all costs.
    """
    # The winner first; sorted() leaves the others in the order in which they were measured.
    ordered = sorted(
        measurements, key=lambda measurement: measurement.candidate.label != decision.winner
    )
    finalist = _labelled(ordered, decision.finalist)
    winner = _labelled(ordered, decision.winner)
    chart = draw(ordered, decision, _headline(decision), args, reference or {}, currency)
    weighed = {**(facts or {}), **_machine(ordered), **_options(winner), **score_notes(ordered)}
    page = Page(
        name=name,
        headline=_headline(decision),
        why=_sentence(decision.why),
        decided=decision.winner is not None,
        winner=decision.winner or "",
        asked=list(asked),
        rows=_rows(ordered, decision, currency),
        evidence=evidence_rows(decision, finalist),
        proved=on_test_rows(decision),
        changes=other_objectives(ordered, decision, args),
        differing=differing_answers(finalist, champion, decision.metric)
        if finalist and champion
        else None,
        faults=fault_rows(ordered, decision.finalist),
        faults_mean=what_is_counted(ordered),
        slices=slice_rows(ordered, decision.metric, decision.finalist),
        notes=_notes(ordered, decision),
        latencies=latency_rows(ordered, decision.concurrency),
        engines=engine_use_rows(ordered),
        before_after=_before_after(evaluated, winner),
        sections=[
            *sections,
            *([Section(title="What was weighed, and where", facts=weighed)] if weighed else []),
        ],
    )
    return WeighingReport(
        page=page,
        markdown=markdown(page),
        html=html(page, chart),
        chart=chart,
        figures=[_figures(measurement, decision) for measurement in ordered],
    )


def _labelled(measurements: Sequence[Measurement], label: str | None) -> Measurement | None:
    return next((one for one in measurements if one.candidate.label == label), None)


def _options(winner: Measurement | None) -> dict[str, str]:
    options = winner.candidate.options if winner else ""
    return {"options of the winner's engine": options} if options else {}


def _headline(decision: Decision) -> str:
    if decision.winner and decision.keeps_champion:
        return f"winner: {decision.winner}, the champion already"
    if decision.winner:
        return f"winner: {decision.winner}"
    return "the champion stays" if decision.keeps_champion else "no winner"


def _rows(
    measurements: Sequence[Measurement], decision: Decision, currency: str
) -> list[dict[str, str]]:
    """Return one row per candidate, all with the same columns."""
    metrics = list(
        dict.fromkeys(key for measurement in measurements for key in measurement.scores)
    ) or [decision.metric]
    counts = sorted({load.concurrency for measurement in measurements for load in measurement.load})
    also: dict[str, Callable[[Measurement], str]] = {}
    if any(measurement.rates for measurement in measurements):
        also["requests/s that keep the limits"] = goodput
    if any(measurement.repeats for measurement in measurements):
        unit, value_of = _REPEATED.get(decision.objective, _TOKENS)
        also[f"{unit} at {decision.concurrency}, repeated"] = partial(_repeats, unit, value_of)
    return [
        _row(measurement, decision, currency, metrics, counts, also) for measurement in measurements
    ]


def _row(
    measurement: Measurement,
    decision: Decision,
    currency: str,
    metrics: Sequence[str],
    counts: Sequence[int],
    also: Mapping[str, Callable[[Measurement], str]],
) -> dict[str, str]:
    label = measurement.candidate.label
    loads = {load.concurrency: load for load in measurement.load}
    at = decision.concurrency
    at_counts = f" at {' / '.join(map(str, counts))}" if counts else ""
    measured = [loads.get(count) for count in counts]
    return {
        "candidate": label,
        **{title_of(key): _score(measurement.scores.get(key)) for key in metrics},
        f"TTFT p50 / p95{f' at {at}' if at else ''}": _ttft(loads.get(at) if at else None),
        f"tokens/s{at_counts}": _each(measured, lambda load: f"{load.tokens_per_second:,.0f}"),
        f"requests/s{at_counts}": _each(
            measured, lambda load: figure(load.requests_per_second, zeros=True)
        ),
        **{title: tell(measurement) for title, tell in also.items()},
        "memory": human_size(measurement.peak_memory) if measurement.peak_memory else UNKNOWN,
        "size": human_size(measurement.candidate.variant.artifact.size),
        f"{currency} / M tokens": _number(measurement.cost_per_million_tokens),
        f"{currency} / 1,000 requests": _number(measurement.cost_per_thousand_requests),
        "verdict": _verdict(label, decision),
    }


def _notes(measurements: Sequence[Measurement], decision: Decision) -> dict[str, str]:
    """Return what is in doubt, and what could not be measured of a candidate."""
    notes = dict(decision.notes)
    for one in measurements:
        label = one.candidate.label
        if said := list(filter(None, [notes.get(label, ""), *one.left_out])):
            notes[label] = "; ".join(said)
    return notes


def _repeats(unit: str, value_of: _Figure, measurement: Measurement) -> str:
    """Return the figure that was repeated, at the load that decides: its mean and interval."""
    runs = [value for repeat in measurement.repeats if (value := value_of(repeat.load)) is not None]
    found = mean_interval(runs) if len(runs) == len(measurement.repeats) else None
    if found is None:
        return UNKNOWN
    mean, low, high = map("{:,.0f}".format if unit == "tokens/s" else figure, found)
    return f"{mean} ({low}–{high})"


def _verdict(label: str, decision: Decision) -> str:
    return _WON if label == decision.winner else decision.reasons.get(label, _LOST)


def _figures(measurement: Measurement, decision: Decision) -> dict[str, Any]:
    """Return a candidate's row as numbers; None stands for what was not measured."""
    label = measurement.candidate.label
    return {
        "candidate": label,
        "verdict": _verdict(label, decision),
        "doubt": _notes([measurement], decision).get(label),
        "scores": score_figures(measurement.scores),
        "test_scores": score_figures(measurement.test_scores),
        "faults": {split: score_figures(scores) for split, scores in measurement.faults.items()},
        "load": [_load_figures(load) for load in measurement.load],
        "goodput": measurement.sustained,
        "load_seconds": measurement.load_seconds,
        "peak_memory": measurement.peak_memory or None,
        "gpu": measurement.gpu.model_dump() if measurement.gpu else None,
        "size": measurement.candidate.variant.artifact.size,
        "cost_per_million_tokens": measurement.cost_per_million_tokens,
        "cost_per_thousand_requests": measurement.cost_per_thousand_requests,
    }


def _load_figures(load: LoadFigures) -> dict[str, Any]:
    # The latencies themselves are in the record, for whoever judges by them.
    ends = {
        f"{name}_p95_interval": [end if math.isfinite(end) else None for end in found]
        for name, latencies in (("ttft", load.ttft), ("tpot", load.tpot))
        if latencies and (found := latencies.interval(0.95))
    }
    return load.model_dump(mode="json", exclude={"ttft", "tpot"}) | ends


def score_figures(scores: Mapping[str, Score]) -> dict[str, dict[str, float | None]]:
    """Return scores with their intervals as numbers that JSON knows."""
    return {
        label: {
            name: value if math.isfinite(value := getattr(score, name)) else None
            for name in ("value", "low", "high")
        }
        for label, score in scores.items()
    }


def _each(loads: Sequence[LoadFigures | None], shown: Callable[[LoadFigures], str]) -> str:
    return " / ".join(shown(load) if load else UNKNOWN for load in loads) or UNKNOWN


def _score(score: Score | None) -> str:
    return UNKNOWN if score is None else str(score)


def _ttft(load: LoadFigures | None) -> str:
    if load is None:
        return UNKNOWN
    return f"{seconds(load.ttft_p50)} / {told(load.ttft, 0.95, load.ttft_p95)}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else figure(value)


def _sentence(text: str) -> str:
    return f"{text.rstrip('.')}." if text else ""


def _before_after(evaluated: Compared | None, winner: Measurement | None) -> list[dict[str, str]]:
    """Return the way from the base to what ships, one row per metric.

    The test split, on which no choice was made, is told of what ships; of the fine-tuned model
    where nothing does. Where nothing was fine-tuned, the way is that of the winner alone.
    """
    if evaluated is None:
        labels = winner.scores if winner else {}
        return [{"metric": title_of(label), **_of_winner(winner, label)} for label in labels]
    return [
        {
            "metric": title_of(label),
            "base": _score(before),
            "fine-tuned": _score(evaluated.finetuned[label]),
            **(
                _of_winner(winner, label)
                or {"fine-tuned, test split": _score(evaluated.test.get(label))}
            ),
        }
        for label, before in evaluated.base.items()
        if label in evaluated.finetuned
    ]


def _of_winner(winner: Measurement | None, label: str) -> dict[str, str]:
    if winner is None:
        return {}
    return {
        "winner": _score(winner.scores.get(label)),
        "winner, test split": _score(winner.test_scores.get(label)),
    }


def _machine(measurements: Sequence[Measurement]) -> dict[str, str]:
    """Return what all candidates were measured on, to be said once."""
    machines = [measurement.machine for measurement in measurements if measurement.machine]
    if not machines:
        return {}
    return {
        key: value
        for key, value in machines[0].items()
        if all(other.get(key) == value for other in machines)
    }
