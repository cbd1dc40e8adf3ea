"""Rows as users have them become canonical rows, or one clear line says which row can't."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from weighbridge.core.errors import BadInput
from weighbridge.core.store import Store
from weighbridge.tasks.data import SPLITS, DataArgs, Message, Row, Split, prepare, read_rows

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def args(**fields: Any) -> DataArgs:
    return DataArgs.model_validate({"source": "file:///data", **fields})


def lines(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


def prepared(tmp_path: Path, files: dict[Split, Path], **fields: Any) -> dict[Split, list[Row]]:
    """The canonical rows that `files` give for all splits."""
    out = tmp_path / "out"
    out.mkdir()
    prepare({split: [(path.name, path)] for split, path in files.items()}, args(**fields), out)
    artifact = Store(tmp_path / "store").add(out, "jsonl")
    return {split: read_rows(artifact, split) for split in SPLITS}


def every_split(tmp_path: Path, file: Path, **fields: Any) -> list[Row]:
    """The rows of one file, given for all three splits."""
    return prepared(tmp_path, {"train": file, "validation": file, "test": file}, **fields)["train"]


def refused(tmp_path: Path, file: Path, **fields: Any) -> str:
    with pytest.raises(BadInput) as caught:
        every_split(tmp_path, file, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_last_turn_of_a_chat_is_the_completion(tmp_path: Path) -> None:
    (row,) = every_split(tmp_path, lines(tmp_path / "a.jsonl", CHAT))
    assert row.prompt == [Message(role="user", content="hi")]
    assert row.reference == "hello"
    assert row.is_chat


def test_prompt_and_completion_as_text_stay_text(tmp_path: Path) -> None:
    (row,) = every_split(
        tmp_path, lines(tmp_path / "a.jsonl", {"prompt": "2+2=", "completion": "4", "id": 7})
    )
    assert row == Row(prompt="2+2=", completion="4")
    assert row.reference == "4"


def test_prompt_and_completion_as_messages_stay_messages(tmp_path: Path) -> None:
    prompt, completion = CHAT["messages"][:1], CHAT["messages"][1:]
    (row,) = every_split(
        tmp_path, lines(tmp_path / "a.jsonl", {"prompt": prompt, "completion": completion})
    )
    assert row.reference == "hello"
    assert row.is_chat


def test_columns_are_filled_into_templates(tmp_path: Path) -> None:
    mapped = {
        "prompt": "Ticket {id}: {text}",
        "completion": '{{"label": {label}}}',
        "system": "Sort.",
    }
    file = lines(tmp_path / "a.jsonl", {"id": 3, "text": "broken", "label": {"team": "x"}})
    (row,) = every_split(tmp_path, file, columns=mapped)
    assert row.prompt == [
        Message(role="system", content="Sort."),
        Message(role="user", content="Ticket 3: broken"),
    ]
    assert row.reference == '{"label": {"team": "x"}}'


def test_columns_can_become_plain_text(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"q": "2+2=", "a": "4"})
    (row,) = every_split(
        tmp_path, file, columns={"prompt": "{q}", "completion": "{a}", "chat": False}
    )
    assert row == Row(prompt="2+2=", completion="4")


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    table = [{"q": "ä\n,", "a": "1"}, {"q": "b", "a": "2"}]
    lines(tmp_path / "a.jsonl", *table)
    (tmp_path / "a.json").write_text(json.dumps(table))
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["q", "a"])
        writer.writeheader()
        writer.writerows(table)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "a.parquet")
    found = []
    for ending in ("jsonl", "json", "csv", "parquet"):
        folder = tmp_path / ending
        folder.mkdir()
        columns = {"prompt": "{q}", "completion": "{a}"}
        found.append(every_split(folder, tmp_path / f"a.{ending}", columns=columns))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == 2


def test_chats_in_parquet_lose_the_keys_that_parquet_fills_with_nothing(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi", "name": None}, CHAT["messages"][1]]
    pq.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    assert every_split(tmp_path, tmp_path / "a.parquet")[0].reference == "hello"


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


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "line 2: it is not JSON"),
        ("[1, 2]", "line 2: it is a list"),
        ({"messages": []}, "line 2: messages must be at least two"),
        (
            {"messages": [{"role": "user", "content": "a"}] * 2},
            "line 2: messages must be at least two",
        ),
        ({"messages": "hi"}, "line 2: messages must be a list of objects"),
        (
            {"messages": [{"role": "user"}, CHAT["messages"][1]]},
            "line 2: prompt.0.content: Field required",
        ),
        (
            {"messages": [{"role": "user", "content": [1]}, CHAT["messages"][1]]},
            "line 2: prompt.0.content",
        ),
        ({"prompt": "a", "completion": "b"}, "the rows before have messages"),
        ({"question": "a", "answer": "b"}, "columns: question, answer"),
    ],
)
def test_a_row_of_the_wrong_shape_is_named(tmp_path: Path, row: Any, words: str) -> None:
    assert words in refused(tmp_path, lines(tmp_path / "a.jsonl", CHAT, row))


def test_a_prompt_as_text_needs_a_completion_as_text(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": CHAT["messages"][1:]})
    assert "must both be text" in refused(tmp_path, file)


def test_an_empty_completion_is_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"prompt": "a", "completion": ""})
    assert "line 1: completion" in refused(tmp_path, file)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": "a", "label": "b"})
    said = refused(tmp_path, file, columns={"prompt": "{ticket}", "completion": "{label}"})
    assert "line 1: there is no column 'ticket'; there are: text, label" in said


def test_an_empty_value_in_a_mapped_column_is_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": None, "label": "b"})
    assert "a mapped column is empty" in refused(
        tmp_path, file, columns={"prompt": "{text}", "completion": "{label}"}
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"\n", "it holds no rows"),
        ("a.json", b"[]", "it holds no rows"),
        ("a.csv", b"q,a\n", "it holds no rows"),
        ("a.json", b"{}", "it is not a list of rows"),
        ("a.json", b"[1", "it is not JSON"),
        ("a.json", b"[1]", "row 1: it is a int"),
        ("a.csv", b"prompt,completion\n1,2\n1\n", "row 2: it has not the header's 2 columns"),
        ("a.csv", b'prompt,completion\n"1"x,2\n', "line 2: it is not CSV"),
        ("a.parquet", b"PAR0", "it is not Parquet"),
        ("a.jsonl", b"\xff\xfe", "it is not UTF-8 text"),
        ("a.json", b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refused(tmp_path, tmp_path / name)


def test_too_few_rows_to_cut_are_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"prompt": str(n), "completion": "x"} for n in range(2)))
    with pytest.raises(BadInput, match="too few to cut validation and test off"):
        prepared(tmp_path, {"train": file})


def test_three_prompts_are_enough_to_cut(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *({"prompt": str(n), "completion": "x"} for n in range(3)))
    splits = prepared(tmp_path, {"train": file}, test_fraction=0.4, validation_fraction=0.4)
    assert [len(splits[split]) for split in SPLITS] == [1, 1, 1]


@pytest.mark.parametrize(
    "fields",
    [
        {"train": "train.xml"},
        {"columns": {"prompt": "{a", "completion": "{b}"}},
        {"columns": {"prompt": "{}", "completion": "{b}"}},
        {"columns": {"prompt": "{a!r}", "completion": "{b}"}},
        {"source": "ftp://x"},
        {"source": 3},
        {"unknown": 1},
    ],
)
def test_arguments_that_cannot_be_right_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        args(**fields)
