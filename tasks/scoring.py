"""Score answers: the one place that runs metrics, for evaluation, weighing and probes alike."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.tasks.data import Row
from weighbridge.tasks.metrics.base import Metric, MetricArgs, Score, ScoresRows, load_metric
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
            scores[args.label()] = _score(metric, args, inputs, references)
    return scores


def _score(metric: Metric, args: MetricArgs, inputs: list[Any], references: list[str]) -> Score:
    try:
        return metric.score(args, inputs, references)
    except WeighbridgeError:
        raise
    # Whatever a plugin of somebody else's raises: it must not end a weighing with a traceback.
    except Exception as exc:
        said = " ".join(f"{type(exc).__name__}: {exc}".split())
        raise BadInput(
            f"scoring with metric '{args.label()}'", said, "check its options, and the plugin"
        ) from exc


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
