"""Score answers: the one place that runs metrics, for evaluation, weighing and probes alike."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

from weighbridge.core.errors import Unavailable
from weighbridge.tasks.data import Row
from weighbridge.tasks.metric_call import call_metric
from weighbridge.tasks.metrics.base import MetricArgs, Question, Score, ScoresRows, load_metric
from weighbridge.tasks.metrics.intervals import with_interval

logger = logging.getLogger(__name__)

Compared = list[list[tuple[dict[int, float], dict[int, float]]]]
"""By row and token of its reference, what the unquantized weights and a candidate hold likely."""
USUAL_TOP: Final = 20
"""Likeliest tokens that are compared where a metric does not say how many."""


def score_all(
    metrics: Sequence[MetricArgs],
    answers: list[str],
    references: list[str],
    logprobs: list[list[float]] | None,
    distributions: Compared | None = None,
    untold: str = "",
    ids: Sequence[str] = (),
    prompts: Sequence[str] = (),
    missing: dict[str, str] | None = None,
) -> dict[str, Score]:
    """Return every metric's score over the same rows, by label.

    `logprobs` holds, per row, the natural-log probability of every token of the encoded completion
    (see `weighbridge.tasks.encoding`). Where an engine cannot tell them pass None: metrics that
    need them are left out, and so are those that compare distributions without these; `untold`
    says why. `ids` name the rows in what is said of them, and `prompts` are what was asked. What a
    metric's service does not tell is an error, or, where `missing` is given, a reason in that.
    """
    scores = {}
    for args in metrics:
        metric = load_metric(args.kind)
        told: dict[str, list[Any] | None] = {
            "logprobs": logprobs,
            "distributions": distributions,
            "questions": [Question(*pair) for pair in zip(prompts, answers, strict=False)],
        }
        inputs = told.get(metric.uses, answers)
        if inputs is None:
            why = untold or "there are no log-probabilities"
            logger.warning("metric %s left out: %s", args.label(), why)
        else:
            try:
                scores[args.label()] = call_metric(metric, args, inputs, references, ids)
            except Unavailable as exc:
                # Somebody else's service: what it does not tell is unknown, and no zero.
                if missing is None:
                    raise
                missing[args.label()] = str(exc)
                logger.warning("metric %s left out: %s", args.label(), exc)
    return scores


def score_rows(
    metrics: Sequence[MetricArgs],
    answers: list[str],
    rows: Sequence[Row],
    logprobs: list[list[float]] | None,
    distributions: Compared | None = None,
    untold: str = "",
    missing: dict[str, str] | None = None,
) -> dict[str, Score]:
    """Return what `score_all` does, with the ids and clusters of the rows; intervals are over
    clusters where there are any.
    """
    references, ids = [row.reference for row in rows], [row.id for row in rows]
    prompts = [row.question for row in rows]
    scores = score_all(
        metrics, answers, references, logprobs, distributions, untold, ids, prompts, missing
    )
    for label, score in scores.items():
        _tell_of_no_numbers(label, score, rows)
    return {label: of_rows(score, rows) for label, score in scores.items()}


def _tell_of_no_numbers(label: str, score: Score, rows: Sequence[Row]) -> None:
    places = [place for place, value in enumerate(score.per_example) if not math.isfinite(value)]
    if places and len(score.per_example) == len(rows):
        logger.warning(
            "metric %s gave no number for %d of %d rows, the first with id %s: nothing can be "
            "shown by it",
            label,
            len(places),
            len(rows),
            rows[places[0]].id,
        )


def of_rows(score: Score, rows: Sequence[Row]) -> Score:
    """Return the score with the ids and clusters of its rows, its interval over clusters where
    there are any.
    """
    # A metric that exists for a whole corpus alone has no rows that could be named.
    if len(score.per_example) != len(rows):
        return score
    clusters = [row.cluster for row in rows] if all(row.cluster for row in rows) else []
    score = score.model_copy(update={"ids": [row.id for row in rows], "clusters": clusters})
    return with_interval(score) if clusters else score


def row_scores(args: MetricArgs, answers: list[str], references: list[str]) -> list[float]:
    """Return a metric's score of every row alone.

    A process that stays, such as the deployer, does not load for it what only summaries need.
    """
    metric = load_metric(args.kind)
    if isinstance(metric, ScoresRows):
        return metric.score_rows(args, answers, references)
    return call_metric(metric, args, answers, references).per_example


def needs_logprobs(metrics: Sequence[MetricArgs]) -> bool:
    """Whether any of the metrics asks for log-probabilities."""
    return any(load_metric(args.kind).uses == "logprobs" for args in metrics)


def of_one_model(metrics: Sequence[MetricArgs]) -> list[MetricArgs]:
    """Return the metrics that say something of one model alone."""
    return [args for args in metrics if load_metric(args.kind).uses != "distributions"]


def tokens_compared(metrics: Sequence[MetricArgs]) -> int:
    """Return how many of the likeliest tokens metrics compare with the unquantized weights'; 0
    where none does.
    """
    return max(
        (
            int(getattr(args, "top", USUAL_TOP))
            for args in metrics
            if load_metric(args.kind).uses == "distributions"
        ),
        default=0,
    )


def worse_by(before: Score, after: Score) -> float:
    """Return by how much `after` is worse than `before`, in the metric's unit; negative: it is
    better.
    """
    difference = before.value - after.value
    return difference if before.greater_is_better else -difference
