"""What can be known of the rows before a run: of files that are on this machine already."""

import math
from pathlib import Path
from typing import Final

from weighbridge.core.formatting import human_size
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.store import Store
from weighbridge.tasks.data import DataArgs, Row, Split
from weighbridge.tasks.download import Pinned, by_split, matching, paths_here, stored_paths
from weighbridge.tasks.preparation import read_splits
from weighbridge.tasks.sources.base import gathering

READ_BYTES: Final = 10 << 20
"""Of all files of the data: to read the rows of as many takes about a second."""
COUNTED_BYTES: Final = 100_000_000
"""Of the files of one split: to count the lines of as many takes a tenth of a second."""
PACKED: Final = 5
"""About how many times larger the rows of a Parquet file are than the file."""


def rows_at_hand(
    pinned: Pinned, args: DataArgs, store: Store
) -> tuple[dict[Split, list[Row]], str]:
    """Return the rows of each split as a run would make them, where the files are here or in the
    store already; else none, and why they are not read.

    Raises:
        BadInput: a run would refuse them.
    """
    files = pinned.data.files
    size = sum(file.size * (PACKED if _is_packed(file) else 1) for file in files)
    paths = paths_here(pinned.data, args) or _fetched(pinned, args, store)
    if len(paths) < len(files):
        return {}, "they have yet to be fetched"
    if size > READ_BYTES:
        about = "about " if any(map(_is_packed, files)) else ""
        most = human_size(READ_BYTES)
        return {}, f"they are {about}{human_size(size)}, and a plan reads no more than {most}"
    return read_splits(by_split(pinned.data, args, paths), args), ""


def count_test_rows(pinned: Pinned, args: DataArgs) -> int | None:
    """Return how many rows test will have, about as many where they are cut off train.

    None for data elsewhere, in another form than one row a line, or too many to count in passing.
    """
    pattern = args.test or args.train
    paths = paths_here(pinned.data, args)
    if not paths or not pattern.endswith(".jsonl"):
        return None
    files = matching(pinned.data, args, "test" if args.test else "train")
    if sum(file.size for file in files) > COUNTED_BYTES:
        return None
    rows = 0
    for file in files:
        with paths[file.path].open("rb") as stream:
            rows += sum(1 for line in stream if line.strip())
    return rows if args.test else math.ceil(rows * args.test_fraction)


def _fetched(pinned: Pinned, args: DataArgs, store: Store) -> dict[str, Path]:
    """Return where the store keeps the files that an earlier run has fetched."""
    data = gathering(pinned.data, args.source, store)
    return stored_paths(filter(None, map(data.known, pinned.data.files)), store)


def _is_packed(file: RemoteFile) -> bool:
    return file.path.endswith(".parquet")
