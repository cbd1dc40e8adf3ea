"""What a column's value becomes."""

import json
import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tasks.prepared_data import MAPPED, every_split, lines, refused


def parquet(tmp_path: Path, values: Any, metadata: dict[str, str] | None = None) -> Path:
    table = pa.table({"text": pa.array(["a"] * len(values)), "label": values})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([Decimal("0.0000001")], pa.decimal128(9, 8)), "0.00000010"),
        (pa.array([date(2024, 1, 1)]), "2024-01-01"),
        (pa.array([datetime(2024, 1, 1, 12)]), "2024-01-01T12:00:00"),
        (pa.array([datetime(2024, 1, 1)], pa.timestamp("ns", "UTC")), "2024-01-01T00:00:00+00:00"),
        (pa.array([time(12, 30)]), "12:30:00"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([0.1], pa.float16()), "0.1"),
        (pa.array([1.0]), "1.0"),
        (pa.array([-0.0]), "-0.0"),
        (pa.array([2**53 + 1]), "9007199254740993"),
        (pa.array([True]), "true"),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array(["x"], pa.large_string()), "x"),
        (pa.array([[0.1, None]], pa.list_(pa.float32())), "[0.1, null]"),
        (pa.array([{"day": date(2024, 1, 1), "no": None}]), '{"day": "2024-01-01", "no": null}'),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '{"k": 1}'),
    ],
)
def test_every_type_of_a_column_has_one_spelling(tmp_path: Path, values: Any, text: str) -> None:
    (row,) = every_split(tmp_path, parquet(tmp_path, values), columns=MAPPED)
    assert row.reference == text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([b"abc"]), "'label' holds bytes"),
        (pa.array([[b"abc"]]), "'label' holds bytes"),
        (pa.array([timedelta(1)]), "'label' holds timedelta"),
        (pa.array([math.nan]), "'label' holds nan, which is no number"),
        (pa.array([-math.inf], pa.float32()), "'label' holds -inf, which is no number"),
        (pa.nulls(1), "'label' is empty"),
    ],
)
def test_a_value_without_a_spelling_is_refused(tmp_path: Path, values: Any, words: str) -> None:
    assert f"row 1: the mapped column {words}" in refused(
        tmp_path, parquet(tmp_path, values), columns=MAPPED
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([3_000_000], pa.int32()).cast(pa.date32()), "date value out of range"),
        (pa.array([2**40], pa.int64()).cast(pa.timestamp("s")), "out of range"),
        (pa.array([0], pa.int64()).cast(pa.timestamp("s", "Mars/Olympus")), "Mars/Olympus"),
        (pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int64())), "duplicate key"),
    ],
)
def test_a_value_that_python_has_not_is_refused_with_row_and_column(
    tmp_path: Path, values: Any, words: str
) -> None:
    said = refused(tmp_path, parquet(tmp_path, values), columns=MAPPED)
    assert "a.parquet, row 1, column 'label': " in said
    assert words in said


def test_class_labels_come_by_their_names(tmp_path: Path) -> None:
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    described = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    rows = every_split(tmp_path, parquet(tmp_path, pa.array([1, 0]), described), columns=MAPPED)
    assert [row.reference for row in rows] == ["pos", "neg"]
    file = parquet(tmp_path, pa.array([-1]), described)
    assert "'label' is empty" in refused(tmp_path, file, columns=MAPPED)


def test_a_description_of_class_labels_does_not_bind_a_column_of_names(tmp_path: Path) -> None:
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    described = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    (row,) = every_split(tmp_path, parquet(tmp_path, pa.array(["pos"]), described), columns=MAPPED)
    assert row.reference == "pos"


def test_bytes_are_no_text_of_a_chat(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "completion": [b"b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "completion" in refused(tmp_path, tmp_path / "a.parquet")


def test_digits_are_lost_by_nobody_where_all_are_kept(tmp_path: Path) -> None:
    numbers = (
        "[0.1, 1.50, 1E5, 0.30000000000000004, 1.7976931348623157e308, 5e-324, 0.10000000000, "
    )
    numbers += "0.10000000000000001, 99.900000000000006]"  # as C's %.17g writes 0.1 and 99.9
    file = lines(tmp_path / "a.jsonl", f'{{"text": "a", "label": {numbers}}}')
    (row,) = every_split(tmp_path, file, columns=MAPPED)
    assert json.loads(row.reference) == json.loads(numbers)
