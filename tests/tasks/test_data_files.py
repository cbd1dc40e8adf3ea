"""Files of rows: every format says the same, and what is not what its name says is refused."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tasks.prepared_data import CHAT, MAPPED, every_split, lines, refused


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


def test_a_damaged_page_of_a_parquet_file_is_told(tmp_path: Path) -> None:
    texts = [f"{number} {number**2}" for number in range(2000)]
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[100:140] = b"\xff" * 40
    (tmp_path / "a.parquet").write_bytes(content)
    assert "a.parquet: it is not Parquet, or damaged: " in refused(tmp_path, tmp_path / "a.parquet")


def test_names_of_columns_are_told_in_one_line_that_can_be_read(tmp_path: Path) -> None:
    row = {"a\nb\x1b[31m": 1, **{f"column {number}": 1 for number in range(99)}}
    said = refused(tmp_path, lines(tmp_path / "a.jsonl", row))
    assert "a\\nb\\x1b[31m, column 0, " in said
    assert said.endswith("column 18 and 80 more; map them under data.columns")
    (tmp_path / "a.csv").write_text('"a\nb","a\nb"\n1,2\n')
    assert r"the column 'a\nb' is there 2 times" in refused(tmp_path, tmp_path / "a.csv")


def test_a_long_cell_of_a_csv_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 200_000},1\n")
    (row,) = every_split(tmp_path, tmp_path / "a.csv", columns=MAPPED | {"chat": False})
    assert len(row.prompt) == 200_000
