"""Rows as users have them become canonical rows, or one clear line says which row can't."""

import csv
import json
import math
import tempfile
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from weighbridge.core.errors import BadInput
from weighbridge.core.store import Store
from weighbridge.tasks.data import SPLITS, DataArgs, Message, Row, Split, read_rows
from weighbridge.tasks.preparation import prepare

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
    assert "the mapped column 'text' is empty" in refused(
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


# What a column's value becomes

MAPPED = {"prompt": "{text}", "completion": "{label}"}


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


def test_a_damaged_page_of_a_parquet_file_is_told(tmp_path: Path) -> None:
    texts = [f"{number} {number**2}" for number in range(2000)]
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[100:140] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(content)
    assert "a.parquet: it is not Parquet, or damaged: " in refused(tmp_path, tmp_path / "a.parquet")


def test_bytes_are_no_text_of_a_chat(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a"], "completion": [b"b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert "completion" in refused(tmp_path, tmp_path / "a.parquet")


# What must not be taken silently


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,label,label\na,1,9\n", "the column 'label' is there 2 times"),
        ("a.csv", b"text,label\na,1\nb,\n", "row 2: completion: the answer is empty"),
        ("a.jsonl", b'{"text": "a", "label": NaN}', "line 1: it is not JSON: it holds NaN"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "'text' is there twice"),
        ("a.json", b'[{"text": "\\ud83d", "label": "b"}]', "row 1: it holds '\\ud83d'"),
        ("a.json", b'[{"\\ud83d": "a"}]', "there are: \\ud83d"),
        ("a.jsonl", b"[" * 100_000, "line 1: it is not JSON"),
        (
            "a.jsonl",
            b'{"text": "a", "label": ' + b"[" * 600 + b"]" * 600 + b"}",
            "line 1: the mapped column 'label' is nested too deep",
        ),
        (
            "a.jsonl",
            b'{"text": "a", "label": 12345678901234567.89}',
            "'label' holds 1.2345678901234568e+16 with more digits than are kept",
        ),
        (
            "a.json",
            b'[{"text": "a", "label": {"part": [0.1234567890123456789]}}]',
            "'label' holds 0.12345678901234568 with more digits than are kept",
        ),
    ],
)
def test_columns_that_would_be_learned_wrongly_are_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert words in refused(tmp_path, tmp_path / name, columns=MAPPED)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (CHAT | {"tools": [{"type": "function"}]}, "its `tools` would not reach the model"),
        (CHAT | {"system": "Be brief."}, "its `system` would not reach the model"),
        ({"prompt": "a", "completion": "b", "documents": ["c"]}, "its `documents` would not reach"),
        ({"messages": [CHAT["messages"][0], {"role": "assistant", "content": ""}]}, "is empty"),
        ({"prompt": "a", "completion": " \n"}, "completion: the answer is empty"),
        ({"prompt": "a", "completion": "\u200b\0\ufeff"}, "completion: the answer is empty"),
        ({"messages": [{"role": "user", "content": " "}, CHAT["messages"][1]]}, "prompt: it is"),
        ({"prompt": "cut \ud83d", "completion": "b"}, "line 1: it holds '\\ud83d'"),
        (
            {"messages": [{"role": "human", "content": "a"}, CHAT["messages"][1]]},
            "the role 'human' is none that clients can ask in; write one of: system, developer,",
        ),
        ({"messages": [{"role": "User\n", "content": "a"}, CHAT["messages"][1]]}, "role 'User\\n'"),
        (
            {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][:1]},
            "completion must begin and end with a message of the assistant",
        ),
        (
            {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][::-1]},
            "completion must begin and end with a message of the assistant",
        ),
    ],
)
def test_rows_that_would_be_learned_wrongly_are_refused(
    tmp_path: Path, row: Any, words: str
) -> None:
    assert words in refused(tmp_path, lines(tmp_path / "a.jsonl", row))


def test_digits_are_lost_by_nobody_where_all_are_kept(tmp_path: Path) -> None:
    numbers = "[0.1, 1.50, 1E5, 0.30000000000000004, 1.7976931348623157e308, 5e-324, 0.10000000000]"
    file = lines(tmp_path / "a.jsonl", f'{{"text": "a", "label": {numbers}}}')
    (row,) = every_split(tmp_path, file, columns=MAPPED)
    assert json.loads(row.reference) == json.loads(numbers)


def test_names_of_columns_are_told_in_one_line_that_can_be_read(tmp_path: Path) -> None:
    row = {"a\nb\x1b[31m": 1, **{f"column {number}": 1 for number in range(99)}}
    said = refused(tmp_path, lines(tmp_path / "a.jsonl", row))
    assert "a\\nb\\x1b[31m, column 0, " in said
    assert said.endswith("column 18 and 80 more; map them under data.columns")
    (tmp_path / "a.csv").write_text('"a\nb","a\nb"\n1,2\n')
    assert r"the column 'a\nb' is there 2 times" in refused(tmp_path, tmp_path / "a.csv")


def test_columns_that_say_nothing_are_no_reason_to_refuse(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", CHAT | {"tools": None, "documents": [], "id": 7})
    assert every_split(tmp_path, file)


def test_a_long_cell_of_a_csv_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 200_000},1\n")
    (row,) = every_split(tmp_path, tmp_path / "a.csv", columns=MAPPED | {"chat": False})
    assert len(row.prompt) == 200_000


# Which turns are learned

TURNS = [
    {"role": role, "content": content}
    for role, content in (
        ("assistant", "Hello."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2"),
    )
]


def test_all_turns_of_train_are_learned_on_request(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"messages": TURNS})
    every = {"train": file, "validation": file, "test": file}
    splits = prepared(tmp_path, every, train_on="all", shared_rows="keep")
    assert [(len(row.prompt), row.reference) for row in splits["train"]] == [(2, "1"), (4, "2")]
    assert [row.reference for row in splits["validation"]] == ["2"]


def test_turns_of_one_chat_stay_in_one_split(tmp_path: Path) -> None:
    chats = [{"messages": [{**TURNS[1], "content": f"{n}?"}, *TURNS[2:]]} for n in range(40)]
    splits = prepared(tmp_path, {"train": lines(tmp_path / "a.jsonl", *chats)}, train_on="all")
    first = {split: {row.prompt[0].content for row in splits[split]} for split in SPLITS}
    assert not first["train"] & (first["validation"] | first["test"])
    assert len(splits["train"]) == 2 * len(first["train"])


def test_turns_that_are_not_learned_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = lines(tmp_path / "a.jsonl", {"messages": TURNS}, CHAT)
    every_split(tmp_path, file)
    assert "of 1 of 2 chats in train only the assistant's last turn is learned" in caplog.text
    caplog.clear()
    # Who gives prompts has said what is learned.
    every_split(tmp_path, lines(file, {"prompt": TURNS[:4], "completion": TURNS[4:]}))
    assert "learned" not in caplog.text


def test_an_empty_turn_is_named_where_all_are_learned(tmp_path: Path) -> None:
    turns = [TURNS[1], {"role": "assistant", "content": ""}, *TURNS[3:]]
    file = lines(tmp_path / "a.jsonl", {"messages": turns})
    assert every_split(tmp_path, file)
    assert "line 1: completion: the answer is empty" in refused(tmp_path, file, train_on="all")


def numbered(*numbers: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{n}?", "completion": f"{n}", **columns} for n in numbers]


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


@pytest.mark.parametrize("what", ["id", "cluster", "slice"])
def test_what_a_row_goes_by_is_text(tmp_path: Path, what: str) -> None:
    file = lines(tmp_path / "a.jsonl", CHAT | {"column": "cut \ud83d"})
    said = refused(tmp_path, file, **{what: "column"})
    assert "line 1: it holds '\\ud83d', which is half of a character" in said


def test_an_id_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *[CHAT | {"column": "a\nb"}] * 2)
    assert r"the id 'a\nb' in column" in refused(tmp_path, file, id="column")
