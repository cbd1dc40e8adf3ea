"""Text comes in whole characters, ends before a stop sequence, and is the same however cut."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.shim.made import END, Bytes
from weighbridge.serving.shim.detokenizer import (
    UNFINISHED,
    Delta,
    Detokenizer,
    StopSequences,
    deltas,
)
from weighbridge.serving.shim.protocol import Sampling
from weighbridge.serving.shim.requests import CompletionRequest

TEXT = "naïve café 🙂 – 日本\n"


def answer(text: str, *, max_tokens: int = 1000, stops: Sequence[str] = ()) -> list[Delta]:
    request = CompletionRequest(
        True, (1,), Sampling(max_tokens), tuple(stops), stream=True, usage=True
    )
    return list(deltas(Bytes(text), request))


def text_of(answered: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in answered)


def test_a_character_comes_when_its_last_byte_has() -> None:
    stream = Detokenizer(Bytes().detokenize)
    assert [stream.push(byte) for byte in "é🙂a".encode()] == ["", "é", "", "", "", "🙂", "a"]


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    answered = answer("ab🙂", max_tokens=4)
    assert all(UNFINISHED not in delta.text for delta in answered[:-1])
    assert (text_of(answered), answered[-1].finish) == (f"ab{UNFINISHED}", "length")


@settings(deadline=None)
@given(st.text(min_size=1), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_what_is_streamed_is_the_text_before_the_first_stop_sequence(
    text: str, stops: list[str]
) -> None:
    answered = answer(text, stops=stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    assert text_of(answered) == (text[: min(ends)] if ends else text)
    assert answered[-1].finish == "stop"
    assert not any(delta.finish for delta in answered[:-1])


@settings(deadline=None)
@given(st.text(min_size=1), st.integers(1, 40))
def test_never_more_tokens_than_asked_for(text: str, most: int) -> None:
    answered = answer(text, max_tokens=most)
    tokens = [token.id for delta in answered for token in delta.tokens]
    assert tokens == [*text.encode(), END][:most]
    assert answered[-1].finish == ("stop" if len(text.encode()) < most else "length")


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab", max_size=3)))
def test_a_begun_stop_sequence_is_held_back_and_given_out_when_it_does_not_come(
    parts: list[str],
) -> None:
    stops = StopSequences(["aab"])
    out = ""
    for part in parts:
        more, stopped = stops.push(part)
        out += more
        assert "aab" not in out
        if stopped:
            break
    else:
        assert out + stops.flush() == "".join(parts)


@pytest.mark.parametrize("text", [TEXT, "", "\x00"])
def test_every_token_is_told_of_with_some_piece(text: str) -> None:
    answered = answer(text)
    assert [token.id for delta in answered for token in delta.tokens] == [
        *(text.encode() or [1]),
        END,
    ]
