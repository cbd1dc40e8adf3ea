"""What ends an answer: decided here alone, from chat template, tokenizer and configuration.

The tokenizer's end of text is often not what ends a turn: ChatML models end it with `<|im_end|>`,
Llama 3 with `<|eot_id|>`. Training learns the turn's own end, evaluation and log-probabilities
count up to it, and every engine stops there: those that read `generation_config.json` by what is
written into that, llama.cpp by the metadata of the GGUF.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weighbridge.core.errors import BadInput
from weighbridge.tasks.chat_template import rendered
from weighbridge.tasks.data import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION: Final = "generation_config.json"
STOPS_OF_LLAMA_CPP: Final = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
"""Tokens at which llama.cpp stops by their spelling, whatever a model's metadata say
(`llama-vocab.cpp`).

Evaluation and the other engines stop there, too, so that all give the same answers.
"""
ANSWER: Final = "weighbridge answers"
"""Stands for an answer while a template is tried out: no template writes it by itself."""
QUESTION: Final = "weighbridge asks"


def token_that_ends(tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> int:
    """Return the token that ends an answer: the last one that training learns.

    In a chat it is the special token that the template writes after the assistant's words, in plain
    text the tokenizer's end of text.

    Raises:
        BadInput: nothing ends it, so that an engine would run on; or the template cannot be used.
    """
    if not chat:
        if tokenizer.eos_token_id is None:
            raise BadInput(
                "looking for what ends an answer",
                "the tokenizer has no end of text, so no answer would ever end",
                "name an `eos_token` in the model's tokenizer_config.json",
            )
        if tokenizer("a")["input_ids"][-1:] == [tokenizer.eos_token_id]:
            raise BadInput(
                "looking for what ends an answer",
                "the tokenizer writes its end of text after every prompt",
                "set `add_eos_token: false` in the model's tokenizer_config.json",
            )
        return int(tokenizer.eos_token_id)
    end = _end_of_turn(tokenizer)
    if end is None:
        raise BadInput(
            "looking for what ends an answer",
            "the chat template writes no special token after the assistant's words, so no answer "
            "would ever end",
            "write `{{ eos_token }}` after them in the model's chat_template.jinja",
        )
    return end


def tokens_that_stop(model: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token at which generation stops, the end of a turn first."""
    turn: int | None = None
    if tokenizer.chat_template:
        try:
            turn = _end_of_turn(tokenizer)
        # Plain texts may be asked of a model whose template refuses every chat.
        except BadInput:
            turn = None
    special = _special(tokenizer)
    # A number that names an ordinary word was left over from another tokenizer.
    configured = [end for end in _configured(model) if end in special]
    ends = (turn, tokenizer.eos_token_id, *configured, *_spelled(tokenizer))
    return list(dict.fromkeys(int(end) for end in ends if end is not None))


def write_stops(model: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a model's `generation_config.json` name every token at which generation stops.

    The file stays as it is, byte for byte, where it does already.
    """
    path, stops = model / GENERATION, sorted(tokens_that_stop(model, tokenizer))
    named = _object(path).get("eos_token_id")
    others = isinstance(named, list) and len(_ids(named)) < len(named)
    if not stops or (set(stops) == set(_ids(named)) and not others):
        return
    settings = {**(_object(path) or _inherited(model)), "eos_token_id": stops}
    path.unlink(missing_ok=True)  # it may be a link to the store's own, read-only copy
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the first special token after the assistant's words, in its last turn or else before
    the next one.
    """
    question, answer = (
        Message(role="user", content=QUESTION),
        Message(role="assistant", content=ANSWER),
    )
    special = _special(tokenizer)
    last = rendered(tokenizer, [question, answer])
    end = next((token for token in _after_answer(tokenizer, last) if token in special), None)
    if end is not None:
        return end
    # Some templates end every turn but the last. What begins the next one ends nothing, and is
    # known by standing before the first question, too.
    two_turns = rendered(tokenizer, [question, answer, question])
    beginnings = set(_tokens(tokenizer, two_turns.partition(QUESTION)[0]))
    after = _after_answer(tokenizer, two_turns.rpartition(QUESTION)[0])
    return next((token for token in after if token in special - beginnings), None)


def _after_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    _, found, rest = text.rpartition(ANSWER)
    return _tokens(tokenizer, rest) if found else []


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return tokens that stand for no text: special ones, and those added to the vocabulary."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _configured(model: Path) -> list[int]:
    for name in (GENERATION, "config.json"):
        if ends := _ids(_object(model / name).get("eos_token_id")):
            return ends
    return []


def _spelled(tokenizer: PreTrainedTokenizerBase) -> Iterable[int]:
    known = tokenizer.get_vocab()
    there = {token for token in STOPS_OF_LLAMA_CPP if token in known}
    # As llama.cpp has it: such models write the one between parts of an answer.
    if there >= {"<|return|>", "<|call|>"} or there >= {"<|flush|>", "<|call|>"}:
        there.discard("<|end|>")
    if "<|tool_response>" in there or "<|plamo:eos|>" in known:
        there.discard("</s>")
    return (known[token] for token in STOPS_OF_LLAMA_CPP if token in there)


def _inherited(model: Path) -> dict[str, Any]:
    """Return what transformers takes from `config.json` where there is no file for generation."""
    config = _object(model / "config.json")
    return {
        name: config[name]
        for name in ("bos_token_id", "pad_token_id")
        if config.get(name) is not None
    }


def _ids(value: Any) -> list[int]:
    """Return the numbers of tokens in a configuration, which may hold anything."""
    ends = value if isinstance(value, list) else [value]
    # Not `isinstance`: true would be the token of number 1.
    return [end for end in ends if type(end) is int]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
