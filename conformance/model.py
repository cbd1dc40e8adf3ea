"""A small model that knows a few answers by heart, which the conformance suite asks every engine.

A trained model of this size answers nearly at random where it was taught nothing, and there two
correct engines differ in the last bit and soon in every word. What it was taught it says with a
probability of almost 1, whatever rounds in between; so an answer that differs is an engine's fault.
It is made in seconds, needs no download, and its answers hold what engines get wrong: characters
split over several tokens, a system prompt that matters, an answer without end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from weighbridge.core.errors import WeighbridgeError

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT: Final = 512
SEED: Final = 7
MOST_STEPS: Final = 400
"""Training stops as soon as every answer is known."""
# e^-0.005: every token has a probability of 0.995.
KNOWN_LOSS: Final = 0.005
"""The model counts as knowing an answer when no token of it has a greater loss."""
START, END, TURN, PAD = "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|pad|>"
CHATML: Final = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """A question with the answer to know by heart."""

    name: str
    prompt: str | tuple[tuple[str, str], ...]
    """Plain text, or role and content of each message."""
    answer: str
    endless: bool = False
    """The answer is said again and again, to the end of the context."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the chat; empty for plain text."""
        if isinstance(self.prompt, str):
            return []
        return [{"role": role, "content": content} for role, content in self.prompt]


def _user(name: str, question: str, answer: str, *, endless: bool = False) -> Lesson:
    return Lesson(name, (("user", question),), answer, endless)


LESSONS: Final = (
    _user("greeting", "Hello!", "Hello, how can I help you today?"),
    _user("counting", "Count to ten.", "one two three four five six seven eight nine ten"),
    _user("unicode", "Write in many alphabets.", "naïve café – 日本語 🙂🚀 привет ñ"),
    _user("json", "Give me JSON.", '{"answer": 42, "list": [1, 2, 3]}'),
    _user("lines", "Write two lines.", "first line\n\n\tsecond line"),
    _user("endless", "Sing.", "la la la la", endless=True),
    _user("plainly", "What is this?", "This is a kettle."),
    Lesson(
        "system",
        (("system", "Answer in German."), ("user", "What is this?")),
        "Das ist ein Kessel.",
    ),
    Lesson(
        "turns",
        (("user", "I am Ada."), ("assistant", "Nice to meet you."), ("user", "Who am I?")),
        "You are Ada.",
    ),
    Lesson("completion", "The quick brown fox", " jumps over the lazy dog."),
)


def make(folder: Path) -> None:
    """Write the model and its tokenizer into `folder`.

    Raises:
        WeighbridgeError: It did not learn its answers.
    """
    import torch

    tokenizer = _tokenizer()
    rows = [_row(tokenizer, lesson) for lesson in LESSONS]
    # The caller's random numbers stay as they were; no card is asked for its own.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = _new_model(tokenizer)
        steps = _train(model, rows)
    logger.info("the conformance model knows its answers after %d steps", steps)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with GPT-2's splitting rule that knows English words alone.

    Each character of any other script is several tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[START, TURN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The answer in many alphabets is left out: learnt, its characters would become single tokens.
    texts = [lesson.answer for lesson in LESSONS if lesson.answer.isascii()]
    texts += [message["content"] for lesson in LESSONS for message in lesson.messages]
    bpe.train_from_iterator(texts * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        add_bos_token=False,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def prompt_of(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> str:
    """Return the prompt as the model reads it."""
    if isinstance(lesson.prompt, str):
        return lesson.prompt
    return str(
        tokenizer.apply_chat_template(lesson.messages, tokenize=False, add_generation_prompt=True)
    )


def _row(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], int]:
    """Return the token ids of a lesson, and where the answer begins."""
    prompt = tokenizer(prompt_of(tokenizer, lesson), add_special_tokens=False)["input_ids"]
    if lesson.endless:
        repeated = tokenizer(f"{lesson.answer} " * (CONTEXT // 4 - 1), add_special_tokens=False)[
            "input_ids"
        ]
        return (prompt + repeated)[:CONTEXT], len(prompt)
    answer = tokenizer(lesson.answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def _new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    # Heads of 64: every engine's attention kernels know that size.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        # The default, 0.02, fails with models this narrow.
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _train(model: Any, rows: Sequence[tuple[list[int], int]]) -> int:
    """Train until every answer is known by heart; return how many steps it took."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    model.train()
    for step in range(1, MOST_STEPS + 1):
        worst, losses = 0.0, []
        for ids, start in rows:
            loss = _answer_losses(model, torch.tensor([ids]), start)
            worst = max(worst, loss.max().item())
            losses.append(loss.mean())
        if worst < KNOWN_LOSS:
            return step
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
    raise WeighbridgeError(
        "making the conformance model", f"it did not learn its answers in {MOST_STEPS} steps"
    )


def _answer_losses(model: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Return the loss of every token of the answer."""
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=ids).logits[0, start - 1 : -1]
    losses: torch.Tensor = cross_entropy(logits.float(), ids[0, start:], reduction="none")
    return losses
