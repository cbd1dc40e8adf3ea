"""Rows as users have them, made canonical: for tests of how that goes."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from weighbridge.core.errors import BadInput
from weighbridge.core.store import Store
from weighbridge.tasks.data import SPLITS, DataArgs, Row, Split, read_rows
from weighbridge.tasks.preparation import prepare

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
MAPPED = {"prompt": "{text}", "completion": "{label}"}


def args(**fields: Any) -> DataArgs:
    return DataArgs.model_validate({"source": "file:///data", **fields})


def lines(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def prepared(tmp_path: Path, files: dict[Split, Path], **fields: Any) -> dict[Split, list[Row]]:
    """The canonical rows that `files` give for all splits."""
    out = Path(tempfile.mkdtemp(dir=tmp_path))
    prepare({split: [(path.name, path)] for split, path in files.items()}, args(**fields), out)
    artifact = Store(tmp_path / "store").add(out, "jsonl")
    return {split: read_rows(artifact, split) for split in SPLITS}


def every_split(tmp_path: Path, file: Path, **fields: Any) -> list[Row]:
    """The rows of one file, given for all three splits."""
    files: dict[Split, Path] = {"train": file, "validation": file, "test": file}
    return prepared(tmp_path, files, shared_rows="keep", **fields)["train"]


def refused(tmp_path: Path, file: Path, **fields: Any) -> str:
    with pytest.raises(BadInput) as caught:
        every_split(tmp_path, file, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(*numbers: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}?", "completion": f"{n}", **columns} for n in numbers]
