"""Pre-tokenizers that llama.cpp knows are told by their pattern; any other is refused."""

from typing import Any

import pytest

from tests.tasks.optimizers.pre_tokenizers import BYTES, BYTES_AND_WORDS, bpe, split
from weighbridge.tasks.optimizers.gguf_scripts.convert import Refusal, name_of

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + (
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_pre_tokenizers_are_known_by_their_pattern() -> None:
    assert name_of(bpe(split(LLAMA_3), BYTES, ignore_merges=True)) == "llama-bpe"
    assert name_of(bpe(split(LLAMA_3), BYTES, ignore_merges=False)) == "smaug-bpe"
    assert name_of(bpe(split(LLAMA_3.replace("{1,3}", "")), BYTES)) == "qwen2"
    assert name_of(bpe(BYTES_AND_WORDS)) == "gpt-2"
    assert name_of({"model": {"type": "BPE"}, "pre_tokenizer": BYTES_AND_WORDS}) == "gpt-2"
    assert name_of(bpe({"type": "Digits", "individual_digits": True}, BYTES_AND_WORDS)) == "smollm"


@pytest.mark.parametrize(
    "tokenizer",
    [
        bpe(split(r"\w+"), BYTES),
        bpe(split(LLAMA_3, invert=True), BYTES),
        bpe(split(LLAMA_3), BYTES_AND_WORDS),
        bpe({**BYTES_AND_WORDS, "add_prefix_space": True}),
        bpe({"type": "Whitespace"}),
        {"model": {"type": "Unigram"}, "pre_tokenizer": BYTES_AND_WORDS},
        {"model": {"type": "BPE"}, "pre_tokenizer": None},
    ],
)
def test_any_other_pre_tokenizer_is_refused(tokenizer: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        name_of(tokenizer)
