"""A byte-level BPE tokenizer with Llama-3's splitting rule, so that every engine already knows how
to run it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, repeat
from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .corpus import END_OF_TEXT, END_OF_TURN
from .world import ORDERS

VOCABULARY: Final = 2400
"""Upper bound; the corpus has fewer words than that, so training may stop earlier."""
PAD: Final = "<|pad|>"
SPECIAL: Final = (END_OF_TEXT, "<|im_start|>", END_OF_TURN, PAD)
LLAMA_3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML: Final = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def train(texts: Iterable[str], context: int) -> PreTrainedTokenizerFast:
    """Learn a vocabulary from `texts`. Every number from 100 to 999 becomes one token.

    `context` is the longest input, in tokens, that the model is meant for.
    """
    # ignore_merges: a piece that is in the vocabulary is one token whatever the merges say, as in
    # Llama 3.
    core = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The trainer merges the most frequent pairs first: without a crowd of numbers, rare ones would
    # stay split.
    numbers = repeat(" ".join(map(str, ORDERS)), 200)
    core.train_from_iterator(chain(texts, numbers), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        add_bos_token=False,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer
