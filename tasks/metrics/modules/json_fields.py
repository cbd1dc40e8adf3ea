"""Share of right fields in answers that should be JSON."""

import json
from collections.abc import Iterator
from typing import Any

import datasets
import evaluate

# No JSON value: `null` parses to None.
UNPARSABLE = object()


class JsonFields(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """Mean share of the fields of prediction and reference that are in both and equal."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of JSON fields that are right. What cannot be parsed is wrong, on "
            "either side.",
            citation="",
            inputs_description="predictions, references: lists of str. Returns json_fields in [0, "
            "1] and per_example.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], fields: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        scores = [share(*pair, fields) for pair in zip(predictions, references, strict=True)]
        return {"json_fields": sum(scores) / len(scores), "per_example": scores}


def share(prediction: str, reference: str, fields: tuple[str, ...] = ()) -> float:
    """Return the share of right fields among those of both texts.

    A field is a leaf, named by its path: `customer.name`, `items.0`.

    With `fields`, only these and what lies below them count.
    """
    answer, expected = parse(prediction), parse(reference)
    # Two texts that cannot be parsed are not equal: a model that answers nonsense to a broken
    # reference would score 1.
    if answer is UNPARSABLE or expected is UNPARSABLE:
        return 0.0
    answer_leaves, expected_leaves = dict(leaves(answer)), dict(leaves(expected))
    paths = [
        path
        for path in {**expected_leaves, **answer_leaves}
        if not fields or _is_below(path, fields)
    ]
    equal = [
        path in answer_leaves
        and path in expected_leaves
        and same(answer_leaves[path], expected_leaves[path])
        for path in paths
    ]
    return sum(equal) / len(equal) if equal else 1.0


def parse(text: str) -> Any:
    """Return the JSON value, or `UNPARSABLE`."""
    try:
        # Python reads NaN and Infinity, which JSON does not have.
        return json.loads(text, parse_constant=_refuse)
    # RecursionError: a model that repeats itself may open thousands of brackets.
    except (ValueError, RecursionError):
        return UNPARSABLE


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every scalar and every empty container, with the path to it."""
    if isinstance(value, dict) and value:
        pairs = list(value.items())
    elif isinstance(value, list) and value:
        pairs = [(str(index), item) for index, item in enumerate(value)]
    else:
        yield path, value
        return
    for key, item in pairs:
        yield from leaves(item, f"{path}.{key}" if path else key)


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal as JSON: `1` is `1.0`, but neither is `true`."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


def _is_below(path: str, fields: tuple[str, ...]) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in fields)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
