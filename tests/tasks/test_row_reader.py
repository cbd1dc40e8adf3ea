"""Rows as users have them become canonical rows, or one clear line says which row can't."""

from pathlib import Path
from typing import Any

import pytest

from tests.tasks.prepared_data import CHAT, every_split, lines, prepared, refused
from weighbridge.tasks.data import SPLITS, Message, Row


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


def test_a_role_that_only_a_template_knows_stays(tmp_path: Path) -> None:
    found = {"role": "ipython", "content": "4"}
    messages = [CHAT["messages"][0], found, CHAT["messages"][1]]
    (row,) = every_split(tmp_path, lines(tmp_path / "a.jsonl", {"messages": messages}))
    assert row.prompt[-1] == Message(role="ipython", content="4")


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
            "the role 'human' is none of OpenAI's protocol; write 'user'",
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


def test_columns_that_say_nothing_are_no_reason_to_refuse(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", CHAT | {"tools": None, "documents": [], "id": 7})
    assert every_split(tmp_path, file)


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
