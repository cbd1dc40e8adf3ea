"""What every metric is held to, a third party's too: scores of the right rows, and of any text."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from weighbridge.conformance.base import CheckFailed
from weighbridge.tasks.metric_call import call_metric
from weighbridge.tasks.metrics.base import MetricArgs, Question, Score, load_metric

ROUNDING: Final = 1e-9
TEXTS: Final = (
    ('{"team": "billing"}', '{"team": "billing"}'),
    ('{"team": "cards"}', '{"team": "billing"}'),
    ("", "a reference"),
    (" \n", "a reference"),
    ("an answer", "a reference"),
    ("\N{GRINNING FACE} Größe 数学 \x00", "Größe"),
    ("[" * 2000, "[]"),
    ("word " * 2000, "word"),
)
"""An answer and its reference each: right, wrong, empty, of any script, nonsense, endless."""
LOGPROBS: Final[Sequence[list[float]]] = ([-0.1, -2.0], [0.0], [-30.0, -0.5, -1e-9])
DISTRIBUTIONS: Final = (
    [({1: -0.1, 2: -3.0}, {1: -0.2, 2: -2.0})],
    [({1: 0.0}, {1: 0.0}), ({1: -0.7, 2: -0.7}, {2: -0.1, 3: -5.0})],
    [({1: -0.1}, {2: -0.1})],
)


def check_metric(kind: str, **options: Any) -> list[str]:
    """Hold a metric plugin to what every metric promises, and return what was checked.

    Args:
        kind: its name: what a recipe says, and what follows `metric.` in the entry point.
        options: of its `Args`.

    Raises:
        CheckFailed: it breaks one of the promises; the message says which, and how.
        BadInput: it cannot be loaded, or raises on a row.
    """
    metric = load_metric(kind)
    args = metric.Args.model_validate({"kind": kind, **options})
    return [f"{kind}: {said}" for said in _checked(args, *_inputs(metric.uses))]


def _inputs(uses: str) -> tuple[list[Any], list[str]]:
    if uses == "text":
        return [answer for answer, _ in TEXTS], [reference for _, reference in TEXTS]
    if uses == "questions":
        answers = [Question("a question", answer) for answer, _ in TEXTS]
        return answers, [reference for _, reference in TEXTS]
    told: Sequence[Any] = LOGPROBS if uses == "logprobs" else DISTRIBUTIONS
    return list(told), ["a reference"] * len(told)


def _checked(args: MetricArgs, inputs: list[Any], references: list[str]) -> Iterator[str]:
    _options_survive(args)
    yield f"goes by {args.label()}, and its options survive JSON"
    metric = load_metric(args.kind)
    ids = [f"number {place}" for place in range(len(inputs))]
    score = call_metric(metric, args, inputs, references, ids)
    _in_bounds(args, score, ids)
    yield f"{len(score.per_example) or 'no'} rows of {len(inputs)} have scores within its bounds"
    again = call_metric(metric, args, inputs, references, ids)
    _hold(again == score, f"the same rows were {score} first, and then {again}")
    yield "the same rows have the same score again"
    turned = call_metric(metric, args, inputs[::-1], references[::-1], ids[::-1])
    same = _near(turned.per_example[::-1], score.per_example)
    _hold(same, "scores of rows are not in the order of the rows")
    _hold(_near([turned.value], [score.value]), "the order of the rows changes its value")
    yield "scores go with their rows, in any order"


def _options_survive(args: MetricArgs) -> None:
    again = type(args).model_validate(json.loads(args.model_dump_json()))
    _hold(again == args, f"its options become {again} after JSON")
    label = args.label()
    _hold(bool(label) and label == label.strip(), f"its label is '{label}'")


def _in_bounds(args: MetricArgs, score: Score, ids: Sequence[str]) -> None:
    lowest, highest = type(args).bounds
    # BLEU of an equal sentence is 100.00000000000004.
    least, most = lowest - ROUNDING, highest + max(ROUNDING, ROUNDING * highest)
    for name, value in zip(ids, score.per_example, strict=False):
        _hold(
            least <= value <= most, f"row {name} has {value}, outside of {lowest:g} to {highest:g}"
        )
    _hold(
        math.isfinite(score.value) and score.low - ROUNDING <= score.value <= score.high + ROUNDING,
        f"its value {score.value} does not lie within its interval, {score.low} to {score.high}",
    )


def _near(values: Sequence[float], others: Sequence[float]) -> bool:
    return len(values) == len(others) and all(
        math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
        for one, other in zip(values, others, strict=True)
    )


def _hold(kept: bool, wrong: str) -> None:
    if not kept:
        raise CheckFailed(wrong)
