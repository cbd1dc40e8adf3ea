"""The YAML of recipes: read in bounded time, without surprises."""

import time
from itertools import pairwise

import pytest

from tests.configs.recipes import VALID
from weighbridge.configs.load import parse
from weighbridge.core.errors import BadInput

ALIASES = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefgh"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"a: &a [{', '.join('x' * 10)}]\n{ALIASES}\nname: *h", "more than 20,000 values"),
        (f"name: {'[' * 9000}{']' * 9000}", "more than 40 levels"),
        ("\n".join(" " * level + "a:" for level in range(300)), "more than 40 levels"),
        ("name: &a [*a]", "line 1: *a stands inside of itself"),
        ("name: &a {b: [*a]}", "line 1: *a stands inside of itself"),
        (f"name: {'x' * 200_000}", "longer than 100,000 characters"),
        ("name: 2024-13-01", "month must be in 1..12"),
        (f"name: {'1' * 5000}", "line 1: a number of 5,000 digits"),
        (f"name: 0x{'f' * 5000}", "line 1: a number of 5,002 digits"),
        (f"a: {{0b{'1' * 900}: 1}}", "line 1: a number of 902 digits"),
        ("name: !!pairs [{[a]: b}]", "name: Input should be a valid string"),
        ("? !!str {=: a}\n: b", "a: unknown key"),
        ('name: !!int ""', "a value is not what its tag"),
        ("name: !!bool x", "a value is not what its tag"),
        ("name: !!timestamp x", "a value is not what its tag"),
        ("name: !!float _", "a value is not what its tag"),
        ("port: 010", "line 1: 010 is a number of another base to YAML; write it in decimal"),
        ("port: 12:30", "line 1: 12:30 is a number of another base to YAML"),
        ("port: 12:30.5", "line 1: 12:30.5 is a number of another base to YAML"),
        ('name: "\\ud800"', "line 1: half of a surrogate pair"),
        (f"a: [{'1, ' * 15_000}1]\n" * 3, "longer than"),
    ],
    ids=range(21),
)
def test_no_text_takes_long_or_ends_in_a_traceback(text: str, expected: str) -> None:
    began = time.process_time()
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 1


def test_aliases_that_stay_small_are_taken() -> None:
    text = VALID.replace("  r: 8", "  r: &rank 8\n  lora_alpha: *rank")
    assert parse(text).finetune.lora_alpha == 8


def test_what_overrides_a_merged_key_counts() -> None:
    shared = "finetune:\n  <<: {r: 4, lora_alpha: 64}\n  r: 8"
    finetune = parse(VALID.replace("finetune:\n  r: 8", shared)).finetune
    assert (finetune.r, finetune.lora_alpha) == (8, 64)
    with pytest.raises(BadInput, match=r"line 9, finetune\.r: ") as caught:
        parse(VALID.replace("finetune:\n  r: 8", shared.replace("r: 8", "r: 0")))
    assert "(given: 0)" in str(caught.value)
