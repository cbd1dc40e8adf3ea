"""Splits: those that are missing are cut off train, and what belongs together stays together."""

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.prepared_data import CHAT, lines, numbered, prepared, refused
from weighbridge.core.errors import BadInput
from weighbridge.tasks.data import SPLITS, Split


def test_missing_splits_are_cut_off_train_and_share_no_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": str(number % 50), "completion": str(number)} for number in range(100)]
    splits = prepared(tmp_path, {"train": lines(tmp_path / "a.jsonl", *rows)}, test_fraction=0.2)
    prompts = {
        split: {row.prompt for row in splits[split] if isinstance(row.prompt, str)}
        for split in SPLITS
    }
    assert sum(len(rows) for rows in splits.values()) == 100
    assert len(prompts["validation"]) == 3
    assert len(prompts["test"]) == 10
    assert sum(len(prompts[split]) for split in SPLITS) == 50


def test_the_cut_depends_on_the_seed_alone(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"prompt": str(n), "completion": "x"} for n in range(100)))
    cuts = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        cuts.append(prepared(tmp_path / name, {"train": file}, seed=seed)["test"])
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2]


def test_a_file_of_a_split_is_not_mixed_with_train(tmp_path: Path) -> None:
    train = lines(tmp_path / "t.jsonl", *({"prompt": str(n), "completion": "x"} for n in range(10)))
    test = lines(tmp_path / "e.jsonl", {"prompt": "only", "completion": "y"})
    splits = prepared(tmp_path, {"train": train, "test": test})
    assert [row.prompt for row in splits["test"]] == ["only"]
    assert len(splits["train"]) == 9


def test_too_few_rows_to_cut_are_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"prompt": str(n), "completion": "x"} for n in range(2)))
    with pytest.raises(BadInput, match="too few to cut validation and test off"):
        prepared(tmp_path, {"train": file})


def test_three_prompts_are_enough_to_cut(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"prompt": str(n), "completion": "x"} for n in range(3)))
    splits = prepared(tmp_path, {"train": file}, test_fraction=0.4, validation_fraction=0.4)
    assert [len(splits[split]) for split in SPLITS] == [1, 1, 1]


def test_ids_and_clusters_come_of_the_columns_that_are_named(tmp_path: Path) -> None:
    rows = [{**row, "number": n, "customer": "AB"[n % 2]} for n, row in enumerate(numbered(1, 2))]
    files: dict[Split, Path] = {"train": lines(tmp_path / "a.jsonl", *rows)}
    for split, first in (("validation", 10), ("test", 20)):
        others = [{**row, "number": first + n} for n, row in enumerate(rows)]
        others = [{**row, "prompt": f"{split} {row['prompt']}"} for row in others]
        files[split] = lines(tmp_path / f"{split}.jsonl", *others)
    splits = prepared(tmp_path, files, id="number", cluster="customer", slice="customer")
    assert [(row.id, row.cluster) for row in splits["test"]] == [("20", "A"), ("21", "B")]
    assert [row.slice for row in splits["test"]] == ["A", "B"]
    splits = prepared(tmp_path, files)
    assert [(row.id, row.cluster) for row in splits["test"]] == [("", ""), ("", "")]


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({}, {"id": "number"}, "a.jsonl, line 1: there is no column 'number'"),
        ({"number": ""}, {"id": "number"}, "line 1: the column 'number' of data.id is empty"),
        ({"c": None}, {"cluster": "c"}, "line 1: the column 'c' of data.cluster is empty"),
        (
            {"number": 7},
            {"id": "number"},
            "the id '7' in column 'number' is that of row 1 of train and of row 2 of train",
        ),
        (
            {"c": "A"},
            {"cluster": "c"},
            "all 4 rows of validation have 'A' in column 'c'; one cluster proves nothing of others",
        ),
    ],
)
def test_ids_and_clusters_that_cannot_be_right_are_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    assert words in refused(
        tmp_path, lines(tmp_path / "a.jsonl", *numbered(1, 2, 3, 4, **columns)), **options
    )


@pytest.mark.parametrize("what", ["id", "cluster", "slice"])
def test_what_a_row_goes_by_is_text(tmp_path: Path, what: str) -> None:
    file = lines(tmp_path / "a.jsonl", CHAT | {"column": "cut \ud83d"})
    said = refused(tmp_path, file, **{what: "column"})
    assert "line 1: it holds '\\ud83d', which is half of a character" in said


def test_an_id_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *[CHAT | {"column": "a\nb"}] * 2)
    assert r"the id 'a\nb' in column" in refused(tmp_path, file, id="column")


def test_clusters_and_equal_prompts_stay_in_one_split(tmp_path: Path) -> None:
    rows = [
        # Documents 0 and 20 begin with the same prompt, and so on.
        {"prompt": f"{n if n % 5 else n % 100}?", "completion": f"{n}", "document": f"{n // 5}"}
        for n in range(200)
    ]
    splits = prepared(tmp_path, {"train": lines(tmp_path / "a.jsonl", *rows)}, cluster="document")
    for values in (lambda row: row.cluster, lambda row: row.prompt):
        found = [{values(row) for row in splits[split]} for split in SPLITS]
        assert not found[0] & found[1]
        assert not (found[0] | found[1]) & found[2]
