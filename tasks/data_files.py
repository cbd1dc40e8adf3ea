"""Data files as users have them -> rows with columns, each with words that say where it stands."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from weighbridge.core import strict_json
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import not_utf8
from weighbridge.tasks.column_text import number_of
from weighbridge.tasks.parquet_columns import read_parquet, refuse_twice

LONGEST_CELL: Final = 2**31 - 1
"""Characters of a CSV cell; the csv module's own limit, 131,072, is shorter than long documents."""


def read_columns(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a data file, with words that say where it stands.

    Raises:
        BadInput: the file is not what its ending says, or a row is not an object.
    """
    try:
        yield from READERS[PurePosixPath(name).suffix.removeprefix(".")](name, path)
    except UnicodeDecodeError as exc:
        raise BadInput(f"reading {name}", not_utf8(exc)) from exc


def _read_jsonl(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:  # Notepad and Excel write a byte order mark
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                row = strict_json.parse(line, number_of)
            except ValueError as exc:
                raise BadInput(f"reading {where}", f"it is not JSON: {exc}") from exc
            yield where, _object(where, row)


def _read_json(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = strict_json.parse(path.read_text(encoding="utf-8-sig"), number_of)
    except UnicodeDecodeError:  # a ValueError, too, of which read_columns tells better
        raise
    except ValueError as exc:
        raise BadInput(f"reading {name}", f"it is not JSON: {exc}") from exc
    if not isinstance(rows, list):
        raise BadInput(
            f"reading {name}", "it is not a list of rows", "for one row a line, name it .jsonl"
        )
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        yield where, _object(where, row)


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadInput(
            f"reading {where}", f"it is a {type(row).__name__}, not an object with columns"
        )
    return row


def _read_csv(name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as stream:  # cells hold line breaks
        rows = csv.DictReader(stream, strict=True)
        try:
            refuse_twice(name, list(rows.fieldnames or []))
            for number, row in enumerate(rows, start=1):
                where = f"{name}, row {number}"
                if None in row or None in row.values():
                    raise BadInput(
                        f"reading {where}",
                        f"it has not the header's {len(rows.fieldnames or [])} columns",
                    )
                yield where, row
        except csv.Error as exc:
            raise BadInput(
                f"reading {name}, line {rows.line_num + 1}", f"it is not CSV: {exc}"
            ) from exc


READERS: Final = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": read_parquet,
}
"""By the ending of a file's name."""
