"""The share of right fields in each answer that should be JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

# No JSON value: `null` parses to None.
UNPARSABLE = object()


def score(
    predictions: Sequence[str], references: Sequence[str], fields: tuple[str, ...] = ()
) -> list[float]:
    """Return each prediction's share of right fields."""
    return [share(*pair, fields) for pair in zip(predictions, references, strict=True)]


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
    try:
        answer_leaves, expected_leaves = dict(leaves(answer)), dict(leaves(expected))
    except RecursionError:  # fewer levels than it takes to parse
        return 0.0
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
