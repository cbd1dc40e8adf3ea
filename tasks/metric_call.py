"""Call a metric of anybody's: what it raises or returns wrongly is one line that names the row."""

from collections.abc import Sequence
from typing import Any, Final

from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.core.formatting import one_line, quoted
from weighbridge.tasks.metrics.base import Metric, MetricArgs, Score

LONGEST: Final = 80
"""Characters of an answer that are shown."""


def call_metric(
    metric: Metric,
    args: MetricArgs,
    inputs: Sequence[Any],
    references: Sequence[str],
    ids: Sequence[str] = (),
) -> Score:
    """Return the metric's score.

    Raises:
        BadInput: It raised, naming the first row on which it does so alone; or it returned no
            score of these rows.
    """
    doing = f"scoring with metric '{args.label()}'"
    try:
        score: Any = metric.score(args, list(inputs), list(references))
    except WeighbridgeError:
        raise
    # Whatever a plugin of somebody else's raises: it must not end a weighing with a traceback.
    except Exception as exc:
        said = one_line(f"{type(exc).__name__}: {exc}")
        place = _first_that_raises(metric, args, inputs, references)
        row = "" if place is None else _named(ids[place : place + 1], inputs[place])
        raise BadInput(doing, f"{row}{said}", "check its options, and the plugin") from exc
    # What a plugin returns is whatever it returns.
    if not isinstance(score, Score):
        wrong = f"it returned {type(score).__name__}, and no weighbridge.plugins.Score"
        raise BadInput(doing, wrong, "correct or remove the plugin")
    if len(score.per_example) not in (0, len(inputs)):
        wrong = f"it returned {len(score.per_example)} scores for {len(inputs)} rows"
        raise BadInput(doing, wrong, "correct or remove the plugin")
    return score


def _named(name: Sequence[str], answer: Any) -> str:
    """Return which row it is, to be put before what it raises: its id may be a digest, by which
    nobody finds it.
    """
    if not name:
        return ""
    answered = f" (answer {quoted(answer[:LONGEST])})" if isinstance(answer, str) else ""
    return f"row {name[0]}{answered}: "


def _first_that_raises(
    metric: Metric, args: MetricArgs, inputs: Sequence[Any], references: Sequence[str]
) -> int | None:
    """Return the place of a row on which it raises alone; None where it takes several together, or
    where it is no single row's doing, such as an option's.
    """
    start, end = 0, len(inputs)
    if end > 1 and all(_raises(metric, args, inputs[n:][:1], references[n:][:1]) for n in (0, -1)):
        return None
    while end - start > 1:
        middle = (start + end) // 2
        if _raises(metric, args, inputs[start:middle], references[start:middle]):
            end = middle
        else:
            start = middle
    alone = start < end and _raises(metric, args, inputs[start:end], references[start:end])
    return start if alone else None


def _raises(
    metric: Metric, args: MetricArgs, inputs: Sequence[Any], references: Sequence[str]
) -> bool:
    try:
        metric.score(args, list(inputs), list(references))
    except Exception:
        return True
    return False
