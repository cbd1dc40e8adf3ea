"""Rows that are in two splits are told of: what is measured on them proves nothing."""

from pathlib import Path

import pytest

from tests.tasks.prepared_data import lines, numbered, prepared
from weighbridge.core.errors import BadInput
from weighbridge.tasks.data import Split


def shared(tmp_path: Path) -> dict[Split, Path]:
    return {
        "train": lines(tmp_path / "train.jsonl", *numbered(1, 2, 3)),
        "validation": lines(tmp_path / "validation.jsonl", *numbered(4, 5)),
        "test": lines(tmp_path / "test.jsonl", *numbered(6, 5, 7, 1)),
    }


def test_rows_of_test_that_are_elsewhere_as_well_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        prepared(tmp_path, shared(tmp_path))
    assert "2 of 4 rows of test are in train and validation as well, the first as row 2" in str(
        caught.value
    )
    assert "set data.shared_rows: drop, or keep" in str(caught.value)


def test_rows_of_test_that_are_elsewhere_are_dropped_or_kept_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = prepared(tmp_path, shared(tmp_path), shared_rows="drop")
    assert [row.reference for row in splits["test"]] == ["6", "7"]
    assert (
        "2 of 4 rows of test are in train and validation as well, and were dropped" in caplog.text
    )
    assert len(prepared(tmp_path, shared(tmp_path), shared_rows="keep")["test"]) == 4


def test_rows_of_validation_that_are_learned_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = shared(tmp_path)
    lines(files["validation"], *numbered(2, 4))
    prepared(tmp_path, files, shared_rows="drop")
    assert "1 of 2 rows of validation are in train as well" in caplog.text
