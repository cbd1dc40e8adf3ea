"""What train, validation and test must be to each other, and their rows to themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import with_escapes
from weighbridge.tasks.data import SPLITS, DataArgs, Row, Split

EVALUATED: Final[tuple[Split, ...]] = ("validation", "test")

logger = logging.getLogger(__name__)


def check_splits(splits: dict[Split, list[Row]], args: DataArgs) -> None:
    """Hold the splits to what the figures made of them will claim; rows of test that are elsewhere
    as well are dropped where `args` says so.

    Raises:
        BadInput: an id comes twice, all rows of a split are of one cluster, or test shares rows
            with train or validation.
    """
    if args.id:
        _refuse_equal_ids(splits, args.id)
    if args.cluster:
        _refuse_one_cluster(splits, args.cluster)
    content = {split: [_content(row) for row in splits[split]] for split in SPLITS}
    _tell_of_shared_validation(content)
    if args.shared_rows != "keep":
        splits["test"] = _unshared_test(splits["test"], content, args)


def groups_of(rows: Sequence[Row]) -> list[str]:
    """Return which rows belong together: those with equal prompts, and those of one cluster."""
    group: dict[str, str] = {}

    def first_of(name: str) -> str:
        while group.setdefault(name, name) != name:
            # Each look halves the way of the next one.
            group[name] = group[group[name]]
            name = group[name]
        return name

    names = [(_prompt(row), f"cluster {row.cluster}") for row in rows]
    for row, (prompt, cluster) in zip(rows, names, strict=True):
        if row.cluster:
            group[first_of(cluster)] = first_of(prompt)
    return [first_of(prompt) for prompt, _ in names]


def _prompt(row: Row) -> str:
    return row.model_dump_json(include={"prompt"})


def _content(row: Row) -> str:
    return row.model_dump_json(include={"prompt", "completion"})


def _refuse_equal_ids(splits: Mapping[Split, Sequence[Row]], column: str) -> None:
    places: dict[str, str] = {}
    for split in SPLITS:
        for number, row in enumerate(splits[split], start=1):
            here = f"row {number} of {split}"
            if (there := places.setdefault(row.id, here)) != here:
                name = with_escapes(row.id)
                wrong = f"the id '{name}' in column '{column}' is that of {there} and of {here}"
                raise BadInput("preparing the data", wrong, "give every row an id of its own")


def _refuse_one_cluster(splits: Mapping[Split, Sequence[Row]], column: str) -> None:
    for split in EVALUATED:
        rows = splits[split]
        if len(rows) > 1 and len({row.cluster for row in rows}) == 1:
            cluster = with_escapes(rows[0].cluster)
            wrong = f"all {len(rows)} rows of {split} have '{cluster}' in column '{column}'"
            remedy = "one cluster proves nothing of others: give more, or leave data.cluster out"
            raise BadInput("preparing the data", wrong, remedy)


def _tell_of_shared_validation(content: Mapping[Split, Sequence[str]]) -> None:
    train = set(content["train"])
    if shared := sum(row in train for row in content["validation"]):
        logger.warning(
            "%d of %d rows of validation are in train as well, which makes its scores better than "
            "they are",
            shared,
            len(content["validation"]),
        )


def _unshared_test(
    test: list[Row], content: Mapping[Split, Sequence[str]], args: DataArgs
) -> list[Row]:
    """Return the rows of test that are in no other split, or refuse that there are others.

    `content` tells of each split what its rows ask and answer, in their order.
    """
    split_of: dict[str, Split] = {}
    for split in ("validation", "train"):
        split_of |= dict.fromkeys(content[split], split)
    shared = [number for number, row in enumerate(content["test"]) if row in split_of]
    if not shared:
        return test
    elsewhere = {split_of[content["test"][number]] for number in shared}
    where = " and ".join(split for split in SPLITS if split in elsewhere)
    count = f"{len(shared)} of {len(test)} rows of test are in {where}"
    if args.shared_rows == "refuse" or len(shared) == len(test):
        wrong = f"{count} as well, the first as row {shared[0] + 1}: test proves nothing by them"
        raise BadInput(
            "preparing the data", wrong, "take them out, or set data.shared_rows: drop, or keep"
        )
    logger.warning("%s as well, and were dropped", count)
    return [row for row, text in zip(test, content["test"], strict=True) if text not in split_of]
