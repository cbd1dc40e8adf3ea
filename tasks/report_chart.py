"""The report's chart: quality against cost, or speed, one panel per metric, the winner marked."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from weighbridge.core.formatting import figure
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select import Decision
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.objective import figures_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (
    "#2563eb",
    "#d97706",
    "#059669",
    "#9333ea",
    "#dc2626",
    "#0891b2",
    "#65a30d",
    "#db2777",
    "#57534e",
    "#ca8a04",
)
_INK, _LIMIT = "#334155", "#b91c1c"
NEAR: Final = 1.0
"""How far away a limit is still drawn, in widths of what the candidates take up."""


@dataclass(frozen=True)
class _Axis:
    """What a panel shows from left to right."""

    title: str
    figure: Callable[[Measurement, LoadFigures], float | None]
    limit: str
    """Field of `select` that limits it."""
    less_is_better: bool = False


_TOKENS = _Axis(
    "output tokens per second", lambda _, load: load.tokens_per_second, "min_tokens_per_second"
)
_REQUESTS = _Axis(
    "requests per second", lambda _, load: load.requests_per_second, "min_requests_per_second"
)
_TOKEN_COST = _Axis(
    "cost of a million tokens",
    lambda measurement, _: measurement.cost_per_million_tokens,
    "max_cost",
    less_is_better=True,
)
_REQUEST_COST = _Axis(
    "cost of 1,000 requests",
    lambda measurement, _: measurement.cost_per_thousand_requests,
    "max_request_cost",
    less_is_better=True,
)
SHORT_ANSWER = 16
"""Tokens of an answer below which tokens per second say more about prompts than about answers."""


TITLES: Final = {"nll": "NLL", "kl": "KL"}


def title_of(label: str) -> str:
    """Return a metric's label as people read it."""
    return TITLES.get(label) or label.replace("_", " ")


def draw(
    measurements: Sequence[Measurement],
    decision: Decision,
    headline: str,
    args: SelectArgs,
    reference: Mapping[str, Score],
    currency: str,
) -> bytes:
    """Return a PNG: up and to the right is better; hollow marks are outside the limits, which are
    dotted lines where they are near.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, axis = _metrics(measurements, decision), _axis(measurements, decision)
    figure = Figure(figsize=(5.2 * len(metrics) + 0.8, 4.4), dpi=120, layout="constrained")
    # Not through pyplot: it keeps figures in global state, and is not safe in the threads of flows.
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        _dress(panel, metric, axis, decision, currency)
        for color, measurement in zip(
            _repeat(_COLORS, len(measurements)), measurements, strict=True
        ):
            _mark(panel, measurement, metric, axis, color, decision)
        _draw_front(panel, measurements, metric, axis, decision)
        _draw_limits(panel, _quality_limits(metric, args, reference), across=True)
        if (limit := getattr(args, axis.limit)) is not None:
            _draw_limits(panel, {limit: [axis.limit]}, across=False)
        if any(
            not measurement.scores[metric].greater_is_better
            for measurement in measurements
            if metric in measurement.scores
        ):
            panel.invert_yaxis()
        if axis.less_is_better:
            panel.invert_xaxis()
    handles, labels = _legend(panels)
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=_INK,
        )
    else:
        panels[0].text(
            0.5, 0.5, "nothing was measured", ha="center", transform=panels[0].transAxes, color=_INK
        )
    figure.suptitle(headline, x=0.02, ha="left", fontsize=12, fontweight="bold", color=_INK)
    png = io.BytesIO()
    # matplotlib would write its version into the file: the same figures shall give the same bytes.
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _metrics(measurements: Sequence[Measurement], decision: Decision) -> list[str]:
    """Return the metric that decided, and NLL where it was measured: it shows damage earlier."""
    nll = (
        "nll"
        if decision.metric != "nll"
        and any("nll" in measurement.scores for measurement in measurements)
        else None
    )
    return [decision.metric, nll] if nll else [decision.metric]


def _axis(measurements: Sequence[Measurement], decision: Decision) -> _Axis:
    """Return what an answer costs, else how fast it is, where no price is known: of requests where
    answers are short or requests decide.
    """
    of_requests = decision.objective in ("requests", "request_cost")
    if of_requests or _answers_are_short(measurements):
        cost, speed = _REQUEST_COST, _REQUESTS
    else:
        cost, speed = _TOKEN_COST, _TOKENS
    places = [_place(one, decision.metric, cost, decision) for one in measurements]
    return cost if any(places) else speed


def _answers_are_short(measurements: Sequence[Measurement]) -> bool:
    lengths = [
        load.tokens_per_second / load.requests_per_second
        for measurement in measurements
        for load in measurement.load
        if load.requests_per_second > 0
    ]
    return bool(lengths) and max(lengths) < SHORT_ANSWER


def _repeat(colors: Sequence[str], number: int) -> list[str]:
    return [colors[index % len(colors)] for index in range(number)]


def _mark(
    panel: "Axes",
    measurement: Measurement,
    metric: str,
    axis: _Axis,
    color: str,
    decision: Decision,
) -> None:
    place, score = _place(measurement, metric, axis, decision), measurement.scores.get(metric)
    if place is None or score is None:
        return
    x, _ = place
    label = measurement.candidate.label
    won, refused = label == decision.winner, label in decision.refused
    panel.errorbar(
        x,
        score.value,
        yerr=_interval(score),
        color=color,
        elinewidth=1,
        capsize=3,
        alpha=0.5,
        zorder=1,
    )
    panel.scatter(
        x,
        score.value,
        s=260 if won else 60,
        marker="*" if won else "o",
        zorder=2,
        linewidths=1.4,
        edgecolors=color,
        facecolors="white" if refused and not won else color,
        label=f"{label} (winner)" if won else label,
    )


def _place(
    measurement: Measurement, metric: str, axis: _Axis, decision: Decision
) -> tuple[float, float] | None:
    """Return where a candidate stands; None where one of both figures is not known."""
    load, score = figures_at(measurement, decision.concurrency), measurement.scores.get(metric)
    x = axis.figure(measurement, load) if load else None
    if x is None or score is None or not math.isfinite(score.value) or not math.isfinite(x):
        return None
    return x, score.value


def _draw_front(
    panel: "Axes", measurements: Sequence[Measurement], metric: str, axis: _Axis, decision: Decision
) -> None:
    """Join the candidates within the limits that no other one is better than in both figures."""
    places = {
        place: measurement.scores[metric].greater_is_better
        for measurement in measurements
        if measurement.candidate.label not in decision.refused
        and (place := _place(measurement, metric, axis, decision))
    }
    front: list[tuple[float, float]] = []
    # From the fastest or cheapest on: whoever follows has to be better in quality.
    for (x, y), greater in sorted(
        places.items(),
        key=lambda item: (
            item[0][0] if axis.less_is_better else -item[0][0],
            -item[0][1] if item[1] else item[0][1],
        ),
    ):
        if not front or (y > front[-1][1] if greater else y < front[-1][1]):
            front.append((x, y))
    if len(front) > 1:
        panel.plot(*zip(*front, strict=True), color=_INK, alpha=0.35, linestyle="--", zorder=0)


def _quality_limits(
    metric: str, args: SelectArgs, reference: Mapping[str, Score]
) -> dict[float, list[str]]:
    """Return the limits of a metric with their fields of `select`; equal ones are one line."""
    limits = [("floor", args.floor)] if metric == args.metric else []
    rule = "max_loss" if metric == args.metric else "max_nll_increase"
    before, loss = reference.get(metric), getattr(args, rule)
    if before is not None and loss is not None:
        limits.append((rule, before.value + (-loss if before.greater_is_better else loss)))
    names: dict[float, list[str]] = {}
    for name, value in limits:
        if value is not None:
            names.setdefault(float(f"{value:.4g}"), []).append(name)
    return names


def _draw_limits(panel: "Axes", limits: Mapping[float, Sequence[str]], *, across: bool) -> None:
    """Draw limits as dotted lines; those far away would squeeze the candidates, and are named."""
    low, high = sorted(panel.get_ylim() if across else panel.get_xlim())
    reach = NEAR * (high - low)
    beyond = []
    for value, names in limits.items():
        name = ", ".join(names)
        if not low - reach <= value <= high + reach:
            beyond.append(f"{name} {figure(value)}")
            continue
        (panel.axhline if across else panel.axvline)(
            value, color=_LIMIT, linestyle=":", linewidth=1.4, zorder=0
        )
        panel.annotate(
            name,
            (0.99, value) if across else (value, 0.02),
            xycoords=panel.get_yaxis_transform() if across else panel.get_xaxis_transform(),
            ha="right",
            va="bottom",
            rotation=0 if across else 90,
            color=_LIMIT,
            fontsize=8,
        )
    if beyond:
        panel.text(
            0.99,
            0.02 if across else 0.08,
            f"far beyond: {'; '.join(beyond)}",
            ha="right",
            transform=panel.transAxes,
            color=_LIMIT,
            fontsize=8,
        )


def _interval(score: Score) -> list[list[float]]:
    return [[max(score.value - score.low, 0.0)], [max(score.high - score.value, 0.0)]]


def _dress(panel: "Axes", metric: str, axis: _Axis, decision: Decision, currency: str) -> None:
    at = f" at concurrency {decision.concurrency}" if decision.concurrency else ""
    unit = f" in {currency}, cheaper is right" if axis.less_is_better else at
    panel.set_xlabel(axis.title + unit, color=_INK)
    panel.set_ylabel(f"{title_of(metric)}, better is up", color=_INK)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=_INK, labelsize=9)
    panel.margins(x=0.15, y=0.2)


def _legend(panels: "Sequence[Axes]") -> "tuple[list[Any], list[str]]":
    seen: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    return list(seen.values()), list(seen)
