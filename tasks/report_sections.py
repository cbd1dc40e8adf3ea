"""Sections of the report beside its table of candidates: each is rows or facts, as text."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import read_json_lines
from weighbridge.core.formatting import figure, human_seconds, human_size
from weighbridge.tasks.data import Message, read_rows
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.report_changes import needed
from weighbridge.tasks.select import Decision
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.weigh_args import WeighArgs

T = TypeVar("T")
EXAMPLES: Final = 8
"""Rows shown on which finalist and champion differ: more are in the predictions in MLflow."""
LONGEST: Final = 240
"""Characters of a prompt or answer that are shown."""


def evidence_rows(decision: Decision, finalist: Measurement | None = None) -> list[dict[str, str]]:
    """Return the rules that decided about the finalist: verdict, figures, what would turn it."""
    return [
        {
            "rule": piece.rule,
            "rows": piece.rows or "—",
            "verdict": piece.claim.verdict,
            "what was seen": piece.claim.why,
            "what would change it": needed(piece, finalist, decision),
        }
        for piece in decision.evidence
    ]


def on_test_rows(decision: Decision) -> str:
    """Return what the test rows said of the finalist; empty where they were not asked."""
    if decision.finalist_score is None:
        return ""
    return (
        f"{decision.finalist} has {decision.metric} {decision.finalist_score} on the test rows, "
        "which chose nothing."
    )


def differing_answers(
    finalist: Measurement, champion: Measurement, metric: str
) -> tuple[str, list[dict[str, str]]]:
    """Return a sentence, and rows of the test split whose score is another for the two.

    Rows that the finalist answers better and worse take turns, so that both are seen.
    """
    ours, theirs = _predictions(finalist, metric), _predictions(champion, metric)
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    better = [pair for pair in pairs if _gain(*pair, metric) > 0]
    worse = [pair for pair in pairs if _gain(*pair, metric) < 0]
    said = (
        f"Of {len(pairs)} test rows that both answered {finalist.candidate.label} is better on "
        f"{len(better)} and worse on {len(worse)}."
    )
    return said, [_shown(*pair, metric) for pair in _in_turns(better, worse)][:EXAMPLES]


def _predictions(measurement: Measurement, metric: str) -> dict[str, dict[str, Any]]:
    """Return the answers to the test rows by row id; none where a record names no rows."""
    score = measurement.test_scores.get(metric)
    if measurement.predictions is None or score is None or not score.ids:
        return {}
    try:
        rows = read_json_lines(measurement.predictions.path / "test.jsonl")
    # A champion may have been weighed on another machine, or its predictions been removed here.
    except (Unavailable, FileNotFoundError):
        return {}
    return dict(zip(score.ids, rows, strict=True))


def _gain(ours: dict[str, Any], theirs: dict[str, Any], metric: str) -> float:
    both = [row.get("scores", {}).get(metric) for row in (ours, theirs)]
    if any(score is None or not math.isfinite(score) for score in both):
        return 0.0
    return float(both[0] - both[1])


def _in_turns(first: Sequence[T], second: Sequence[T]) -> Iterator[T]:
    for number in range(max(len(first), len(second))):
        yield from first[number : number + 1]
        yield from second[number : number + 1]


def _shown(ours: dict[str, Any], theirs: dict[str, Any], metric: str) -> dict[str, str]:
    prompt = ours["prompt"]
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return {
        "prompt": _short(text),
        "reference": _short(ours["reference"]),
        "finalist": _short(ours["answer"]),
        "champion": _short(theirs["answer"]),
        metric.replace(
            "_", " "
        ): f"{ours['scores'][metric]:g} against {theirs['scores'][metric]:g}",
    }


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def data_card(data: Artifact) -> dict[str, str]:
    """Return how much data there is, and how long what is judged by it is."""
    with (data.path / "train.jsonl").open("rb") as stream:
        counts = {"train": sum(1 for _ in stream)}
    judged = {split: read_rows(data, split) for split in ("validation", "test")}
    counts |= {split: len(rows) for split, rows in judged.items()}
    rows = [row for rows in judged.values() for row in rows]
    card = {"rows": ", ".join(f"{count:,} {split}" for split, count in counts.items())}
    clusters = {row.cluster for row in rows if row.cluster}
    if clusters:
        card["rows"] += f"; validation and test are of {len(clusters):,} clusters"
    if rows:
        card["prompts"] = _lengths([_length(row.prompt) for row in rows])
        card["references"] = _lengths([len(row.reference) for row in rows])
    return card


def _length(prompt: list[Message] | str) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)


def _lengths(lengths: Sequence[int]) -> str:
    return f"{statistics.median(lengths):,.0f} characters at the median, {max(lengths):,} at most"


_LIMITS: Final[Mapping[str, Callable[[float], str]]] = {
    "floor": partial(figure, digits=4),
    "max_loss": figure,
    "max_nll_increase": figure,
    "max_kl": figure,
    "max_length_change": "{:.0%}".format,
    "max_ttft_p95": human_seconds,
    "min_tokens_per_second": partial(figure, digits=4),
    "min_requests_per_second": partial(figure, digits=4),
    "max_memory": human_size,
    "max_size": human_size,
    "max_cost": partial(figure, digits=4),
    "max_request_cost": partial(figure, digits=4),
    "max_errors": "{:.0%}".format,
    "max_empty": "{:.1%}".format,
    "max_truncated": "{:.1%}".format,
    "max_refused": "{:.1%}".format,
    "max_malformed": "{:.1%}".format,
}


def asked(select: SelectArgs, weigh: WeighArgs, variants: Sequence[str]) -> dict[str, str]:
    """Return what a recipe asks for: candidates, objective, limits, and how they are weighed."""
    limits = {name: getattr(select, name) for name in _LIMITS}
    engines = dict.fromkeys(engine.kind for engine in weigh.engines)
    return {
        "candidates": f"{', '.join(variants)} on {', '.join(engines)}",
        "objective": _objective(select, weigh),
        "quality": select.metric,
        "limits": ", ".join(
            f"{name} {_LIMITS[name](limit)}" for name, limit in limits.items() if limit is not None
        ),
        "in doubt": "not released" if select.on_doubt == "refuse" else "released, and noted here",
        "to replace what serves": _replacing(select),
        "load": _load(weigh),
    }


def _objective(select: SelectArgs, weigh: WeighArgs) -> str:
    if select.objective in ("quality", "memory", "size", "goodput"):
        return select.objective
    if select.objective in ("cost", "request_cost") and weigh.arrivals == "poisson":
        return f"{select.objective} at the goodput"
    return f"{select.objective} at concurrency {select.concurrency or max(weigh.concurrency)}"


def _replacing(select: SelectArgs) -> str:
    better = f"better in {select.metric}"
    if select.objective == "quality":
        return better
    return (
        f"{better}; or not worse by {figure(select.margin)}, and better in {select.objective} by "
        f"{select.min_improvement:.1%}"
    )


def _load(weigh: WeighArgs) -> str:
    levels = ", ".join(map(str, weigh.concurrency))
    said = f"concurrency {levels}, {weigh.requests} requests at least"
    if weigh.arrivals == "poisson":
        kept = [
            f"{name} {human_seconds(limit)}"
            for name, limit in (("TTFT", weigh.ttft_limit), ("TPOT", weigh.tpot_limit))
            if limit is not None
        ]
        part = f"{weigh.limit_percentile:.0%}"
        said += f"; and the highest rate at which {part} keep {' and '.join(kept)}"
    return said
