"""Rows of a Parquet file as Python values that mean what the file's types say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import not_utf8, one_line, with_escapes

if TYPE_CHECKING:
    import pyarrow as pa


NO_VALUE: Final = (LookupError, ValueError, OverflowError)
"""What converting raises: for a date after the year 9999, a time zone that nobody knows, a map with
a key twice, text that is not UTF-8.
"""


def read_parquet(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with words that say where it stands.

    Floats of 16 and 32 bits come with their own digits and not with those of 64 bits, maps as
    objects, and the class labels of Hugging Face data sets by their names.

    Raises:
        BadInput: it is not Parquet, or damaged, two columns have one name, or a value is none that
            Python has.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
            refuse_twice(name, schema.names)
            readers = _readers(schema)
            number = 0
            for batch in table.iter_batches():
                for row in _values(name, batch, number):
                    number += 1
                    for column, read in readers.items():
                        row[column] = read(row[column])
                    yield f"{name}, row {number}", row
    # OSError: a page is damaged, or its end is missing.
    except (pa.ArrowException, OSError) as exc:
        wrong = one_line(exc)
        raise BadInput(f"reading {name}", f"it is not Parquet, or damaged: {wrong}") from exc


def _values(name: str, batch: pa.RecordBatch, before: int) -> list[dict[str, Any]]:
    """Return rows as Python values.

    Args:
        name: Of the file.
        batch: The rows.
        before: How many rows of the file stand before them.

    Raises:
        BadInput: a value is none that Python has; row and column are named.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
    except NO_VALUE as exc:
        where, wrong = name, exc
        for number, column in product(range(batch.num_rows), batch.schema.names):
            try:
                batch.column(column).slice(number, 1).to_pylist(maps_as_pydicts="strict")
            except NO_VALUE as first:
                row = before + number + 1
                where, wrong = f"{name}, row {row}, column '{with_escapes(column)}'", first
                break
        raise BadInput(f"reading {where}", _told(wrong), "write the column as text") from exc
    return rows


def _told(exc: Exception) -> str:
    if isinstance(exc, UnicodeDecodeError):
        return not_utf8(exc)
    # The text of a KeyError is the representation of its argument.
    return one_line(exc.args[0] if exc.args else exc)


def _readers(schema: pa.Schema) -> dict[str, Callable[[Any], Any]]:
    """Return, for the columns that need it, what makes their values mean what they should."""
    readers: dict[str, Callable[[Any], Any]] = {}
    for column, feature in _features(schema.metadata or {}).items():
        if "ClassLabel" in json.dumps(feature):
            readers[column] = partial(_named, feature=feature)
    for field in schema:
        # pyarrow calls the floats of 16 and 32 bits `halffloat` and `float`, those of 64 `double`.
        if "float" in str(field.type):
            readers[field.name] = partial(_digits, kind=field.type)
    return {column: read for column, read in readers.items() if column in schema.names}


def refuse_twice(name: str, columns: list[str]) -> None:
    """Raise BadInput where two columns have one name: only one of them would be read."""
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise BadInput(
            f"reading {name}",
            f"the column '{with_escapes(twice)}' is there {columns.count(twice)} times",
            "give each column a name of its own",
        )


def _digits(value: Any, kind: pa.DataType) -> Any:
    """Return the value with every narrow float as the shortest number that is stored as it is."""
    import numpy as np
    import pyarrow.types as types

    if value is None:
        return None
    if types.is_dictionary(kind):
        return _digits(value, kind.value_type)
    if types.is_float16(kind) or types.is_float32(kind):
        return float(str((np.float16 if types.is_float16(kind) else np.float32)(value)))
    if types.is_struct(kind):
        return {field.name: _digits(value[field.name], field.type) for field in kind}
    if types.is_map(kind):
        return {key: _digits(item, kind.item_type) for key, item in value.items()}
    # A map is none of these, nor a text.
    if hasattr(kind, "value_type") and isinstance(value, list):
        return [_digits(item, kind.value_type) for item in value]
    return value


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the features that the library `datasets` describes in the file; empty without them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _named(value: Any, feature: Any) -> Any:
    """Return the value with the names of class labels in place of their numbers; None for a number
    without a name, by which data sets say that there is no label.
    """
    if value is None or feature is None:
        return value
    if isinstance(feature, list):
        inner = feature[0] if feature else None
        return [_named(item, inner) for item in value] if isinstance(value, list) else value
    if not isinstance(feature, dict):
        return value
    kind = feature.get("_type")
    if kind == "ClassLabel":
        names = feature.get("names")
        # Whoever wrote the file may have put the names into the column, and left the description.
        if type(value) is not int or not isinstance(names, list):
            return value
        return names[value] if 0 <= value < len(names) else None
    inner = feature.get("feature")
    if inner is not None and isinstance(value, list):
        return [_named(item, inner) for item in value]
    if inner is not None and isinstance(value, dict) and isinstance(inner, dict):
        # A sequence of objects is stored as an object of lists.
        return {
            key: [_named(item, inner.get(key)) for item in items]
            if isinstance(items, list)
            else items
            for key, items in value.items()
        }
    if kind is None and isinstance(value, dict):
        return {key: _named(item, feature.get(key)) for key, item in value.items()}
    return value
