"""Rows to token ids."""

from pathlib import Path

import pytest

from weighbridge.core.errors import BadInput
from weighbridge.tasks.data import Message, Row
from weighbridge.tasks.encoding import encode, load_tokenizer


def chat(*turns: str) -> Row:
    messages = [
        Message(role=("user", "assistant")[index % 2], content=turn)
        for index, turn in enumerate(turns)
    ]
    return Row(prompt=messages[:-1], completion=messages[-1:])


def test_a_chat_ends_with_the_end_of_its_turn(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    (row,) = encode(tokenizer, [chat("How are you?", "Fine.")])
    assert (
        tokenizer.decode(row.prompt)
        == "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(row.completion) == "Fine.<|im_end|>"


def test_all_turns_but_the_last_are_prompt(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    (row,) = encode(tokenizer, [chat("One?", "Two.", "Three?", "Four.")])
    assert tokenizer.decode(row.prompt).count("<|im_end|>") == 3
    assert tokenizer.decode(row.completion) == "Four.<|im_end|>"


def test_plain_text_gets_an_end(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    (row,) = encode(tokenizer, [Row(prompt="2 + 2 =", completion=" 4")])
    assert tokenizer.decode(row.prompt + row.completion) == "2 + 2 = 4<|im_end|>"


def test_the_prompt_is_encoded_as_at_inference_where_a_token_would_span_the_border(
    tiny_model: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    (row,) = encode(tokenizer, [Row(prompt="the te", completion="am is here")])
    assert row.prompt == tokenizer("the te")["input_ids"]
    assert tokenizer.decode(row.completion) == "am is here<|im_end|>"


def test_a_template_that_changes_the_prompt_once_it_is_answered_still_ends_the_answer(
    tiny_model: Path,
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
    )
    (row,) = encode(tokenizer, [chat("How are you?", "Fine.")])
    assert tokenizer.decode(row.prompt).endswith("assistant: <think>\n")
    assert tokenizer.decode(row.completion) == "Fine.<|im_end|>"


def test_a_template_that_refuses_a_row_is_named(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadInput, match="roles must alternate"):
        encode(tokenizer, [chat("a", "b")])


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="loading the tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
