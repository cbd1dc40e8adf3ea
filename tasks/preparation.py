"""Data files -> canonical rows in train, validation and test."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from weighbridge.core.errors import BadInput
from weighbridge.tasks.data import SPLITS, DataArgs, Row, Split, write_rows
from weighbridge.tasks.data_files import read_columns
from weighbridge.tasks.row_reader import RowReader, each_turn
from weighbridge.tasks.split_checks import check_splits, groups_of

logger = logging.getLogger(__name__)


def prepare(
    files: Mapping[Split, list[tuple[str, Path]]], args: DataArgs, out: Path
) -> dict[Split, int]:
    """Write the three canonical files into `out`; return the number of rows of each.

    `files` gives, per split that the source has, the name and the local copy of each file.

    Raises:
        BadInput: a file is empty or unreadable, or a row has not the shape of the first one.
    """
    splits = read_splits(files, args)
    if args.train_on == "all":
        splits["train"] = [turn for row in splits["train"] for turn in each_turn(row)]
    for split in SPLITS:
        write_rows(splits[split], out / f"{split}.jsonl")
    return {split: len(splits[split]) for split in SPLITS}


def read_splits(
    files: Mapping[Split, list[tuple[str, Path]]], args: DataArgs
) -> dict[Split, list[Row]]:
    """Return the rows of all three splits, each held to its form and the splits to each other.

    Raises:
        BadInput: as `prepare` does.
    """
    reader = RowReader(args)
    splits = {
        split: [row for name, path in files[split] for row in _rows(name, path, reader)]
        for split in files
    }
    _cut_off(splits, args)
    check_splits(splits, args)
    if args.train_on == "last" and reader.form == "messages":
        _tell_of_other_turns(splits["train"])
    return splits


def check_first_rows(
    files: Mapping[Split, list[tuple[str, Path]]], args: DataArgs, most: int = 100
) -> None:
    """Refuse files whose first rows `prepare` would refuse.

    Raises:
        BadInput: as `prepare` does.
    """
    reader = RowReader(args)
    for split in files:
        for name, path in files[split]:
            for where, columns in islice(read_columns(name, path), most):
                reader.row(where, columns)


def _rows(name: str, path: Path, reader: RowReader) -> list[Row]:
    rows = [reader.row(where, columns) for where, columns in read_columns(name, path)]
    if not rows:
        raise BadInput(
            f"reading {name}", "it holds no rows", "give a file with at least one example"
        )
    return rows


def _tell_of_other_turns(train: Sequence[Row]) -> None:
    """Warn where chats hold answers that are not learned."""
    several = sum(
        any(message.role == "assistant" for message in row.prompt if not isinstance(message, str))
        for row in train
    )
    if several:
        logger.warning(
            "of %d of %d chats in train only the assistant's last turn is learned; "
            "data.train_on: all learns every one",
            several,
            len(train),
        )


def _cut_off(splits: dict[Split, list[Row]], args: DataArgs) -> None:
    """Move rows from train into the splits that are missing; equal prompts stay together, and so
    do clusters.
    """
    fractions: dict[Split, float] = {
        "validation": args.validation_fraction,
        "test": args.test_fraction,
    }
    missing: list[Split] = [split for split in ("validation", "test") if split not in splits]
    if not missing:
        return
    train = splits["train"]
    keys = groups_of(train)
    prompts = list(dict.fromkeys(keys))  # a set has another order in every process
    if len(prompts) <= len(missing):
        apart = f"different values of '{args.cluster}'" if args.cluster else "different prompts"
        wrong = f"{len(prompts)} {apart} in train are too few to cut {' and '.join(missing)} off"
        raise BadInput("splitting the data", wrong, "give more rows, or files for these splits")
    random.Random(args.seed).shuffle(prompts)
    most = (len(prompts) - 1) // len(missing)  # train keeps one prompt at least
    split_of: dict[str, Split] = {}
    for split in missing:
        # One cluster would prove nothing of others.
        least = 2 if args.cluster else 1
        count = min(max(math.ceil(len(prompts) * fractions[split]), least), most)
        taken, prompts = prompts[:count], prompts[count:]
        split_of.update(dict.fromkeys(taken, split))
    for split in ("train", *missing):
        splits[split] = [
            row for row, key in zip(train, keys, strict=True) if split_of.get(key, "train") == split
        ]
