"""Rows of files that are here already are held to what a run holds them to, before it begins."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tasks.models import fetched, rows, write
from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import rows_at_hand as module
from weighbridge.tasks.data import SPLITS, DataArgs, Row, Split, read_rows
from weighbridge.tasks.download import DownloadArgs, pin
from weighbridge.tasks.rows_at_hand import count_test_rows, rows_at_hand
from weighbridge.tasks.sources.base import gathering


def named(*numbers: int, customer: str = "") -> bytes:
    """Rows with an id, and a customer of their own where none is given."""
    made = (
        {"prompt": f"{n}?", "completion": "!", "id": f"{n}", "customer": customer or f"{n}"}
        for n in numbers
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in made)


def looked_at(
    here: DownloadArgs, workspace: Workspace, **changes: Any
) -> tuple[dict[Split, list[Row]], str]:
    data = DataArgs.model_validate(here.data.model_dump() | changes)
    pinned = pin(here.model_copy(update={"data": data}), workspace)
    return rows_at_hand(pinned, data, workspace.store)


def test_rows_are_those_that_a_run_makes_and_nothing_is_fetched_for_them(
    here: DownloadArgs, workspace: Workspace
) -> None:
    splits, unread = looked_at(here, workspace)
    assert not unread
    assert not workspace.store.root.exists()
    data = fetched(here, workspace).data
    assert splits == {split: read_rows(data, split) for split in SPLITS}


@pytest.mark.parametrize(
    ("train", "test", "options", "words"),
    [
        (
            named(1, 2, 3, 1),
            named(8, 9),
            {"id": "id"},
            "the id '1' in column 'id' is that of row 1 of train and of row 4 of train; give every",
        ),
        (
            named(1, 2, 3),
            named(9, 2),
            {"id": "id"},
            "the id '2' in column 'id' is that of row 2 of train and of row 2 of test; give every",
        ),
        (
            named(*range(150)) + b'{"prompt": "?", "completion": "!", "id": ""}\n',
            named(200, 201),
            {"id": "id"},
            "train.jsonl, line 151: the column 'id' of data.id is empty; fill it in every row, or "
            "leave data.id out",
        ),
        (
            named(*range(150)) + rows(1),
            named(200, 201),
            {"id": "id"},
            "train.jsonl, line 151: there is no column 'id'; there are: prompt, completion",
        ),
        (
            named(1, 2, 3),
            named(8, 9, customer="A"),
            {"cluster": "customer"},
            "all 2 rows of test have 'A' in column 'customer'; one cluster proves nothing of",
        ),
        (
            named(1, 2, 3),
            named(8, 2, 9),
            {},
            "1 of 3 rows of test are in train as well, the first as row 2: test proves nothing by "
            "them; take them out, or set data.shared_rows: drop, or keep",
        ),
    ],
)
def test_rows_that_a_run_would_refuse_are_refused_before_it(
    here: DownloadArgs,
    workspace: Workspace,
    tmp_path: Path,
    train: bytes,
    test: bytes,
    options: dict[str, str],
    words: str,
) -> None:
    files = {"train": train, "test": test, "validation": named(300, 301)}
    write(tmp_path / "data", {f"{split}.jsonl": content for split, content in files.items()})
    splits = {split: f"{split}.jsonl" for split in files}
    with pytest.raises(BadInput) as caught:
        looked_at(here, workspace, **splits, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_than_is_read_in_passing_is_left_to_the_run_with_the_reason(
    here: DownloadArgs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_BYTES", 1000)
    splits, unread = looked_at(here, workspace)
    assert not splits
    assert unread == "they are 1.5 KiB, and a plan reads no more than 1000 B"


def test_rows_of_a_packed_file_count_as_what_they_are_unpacked(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "completion": ["A", "B", "C"]}), packed)
    write(tmp_path / "data", {"t.parquet": packed.getvalue()})
    splits, _ = looked_at(here, workspace, train="t.parquet")
    assert [len(splits[split]) for split in SPLITS] == [1, 1, 1]
    monkeypatch.setattr(module, "READ_BYTES", 3 * len(packed.getvalue()))
    splits, unread = looked_at(here, workspace, train="t.parquet")
    assert not splits
    assert unread.startswith("they are about ")


def test_rows_elsewhere_are_looked_at_once_they_are_in_the_store(
    here: DownloadArgs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "paths_here", lambda *_: {})
    pinned = pin(here, workspace)
    assert rows_at_hand(pinned, here.data, workspace.store) == ({}, "they have yet to be fetched")
    gathering(pinned.data, here.data.source, workspace.store).run("fetching")
    splits, _ = rows_at_hand(pinned, here.data, workspace.store)
    assert [len(splits[split]) for split in SPLITS] == [36, 2, 2]


@pytest.mark.parametrize(
    ("changes", "count"), [({}, 2), ({"test": "x/test.jsonl"}, 7), ({"train": "x/t.csv"}, None)]
)
def test_test_rows_on_this_machine_are_counted_before_anything_is_fetched(
    here: DownloadArgs,
    workspace: Workspace,
    tmp_path: Path,
    changes: dict[str, str],
    count: int | None,
) -> None:
    write(
        tmp_path / "data", {"x/test.jsonl": rows(7) + b"\n", "x/t.csv": b"prompt,completion\na,b\n"}
    )
    data = here.data.model_copy(update=changes)
    pinned = pin(here.model_copy(update={"data": data}), workspace)
    assert count_test_rows(pinned, data) == count
