"""Score answers: the one place that runs metrics, for evaluation, weighing and probes alike."""

import logging
from collections.abc import Sequence
from typing import Any

from weighbridge.tasks.data import Row
from weighbridge.tasks.metrics.base import MetricArgs, Score, ScoresRows, load_metric
from weighbridge.tasks.metrics.intervals import with_interval

logger = logging.getLogger(__name__)


def score_all(
    metrics: Sequence[MetricArgs],
    answers: list[str],
    references: list[str],
    logprobs: list[list[float]] | None,
) -> dict[str, Score]:
    """Return every metric's score over the same rows, by label.

    `logprobs` holds, per row, the natural-log probability of every token of the encoded completion
    (see `weighbridge.tasks.encoding`). Where an engine cannot tell them pass None: metrics that
    need them are left out.
    """
    scores = {}
    for args in metrics:
        metric = load_metric(args.kind)
        inputs: list[Any] | None = logprobs if metric.uses == "logprobs" else answers
        if inputs is None:
            logger.warning("metric %s left out: there are no log-probabilities", args.label())
        else:
            scores[args.label()] = metric.score(args, inputs, references)
    return scores


def score_rows(
    metrics: Sequence[MetricArgs],
    answers: list[str],
    rows: Sequence[Row],
    logprobs: list[list[float]] | None,
) -> dict[str, Score]:
    """Return what `score_all` does, with the ids and clusters of the rows; intervals are over
    clusters where there are any.
    """
    scores = score_all(metrics, answers, [row.reference for row in rows], logprobs)
    return {label: _of_rows(score, rows) for label, score in scores.items()}


def _of_rows(score: Score, rows: Sequence[Row]) -> Score:
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
    return metric.score(args, answers, references).per_example


def needs_logprobs(metrics: Sequence[MetricArgs]) -> bool:
    """Whether any of the metrics asks for log-probabilities."""
    return any(load_metric(args.kind).uses == "logprobs" for args in metrics)


def worse_by(before: Score, after: Score) -> float:
    """Return by how much `after` is worse than `before`, in the metric's unit; negative: it is
    better.
    """
    difference = before.value - after.value
    return difference if before.greater_is_better else -difference
