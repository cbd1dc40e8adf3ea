"""About how much memory a fine-tune takes, from a model's files and the rows alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from weighbridge.core.safetensors_header import tensors
from weighbridge.tasks.data import Row
from weighbridge.tasks.finetune_args import FinetuneArgs
from weighbridge.tasks.model_files import read_object

PROCESS: Final = 700_000_000
"""Bytes of a process that has imported torch, transformers, PEFT and TRL."""
WIDE: Final = 4
"""Bytes of a number in training on a CPU: weights are widened to float32."""
OF_ADAPTER: Final = 4 * WIDE
"""Bytes per number of the adapter: itself, its gradient and two means of the optimizer."""
HIDDEN_KEPT: Final = 14
MIDDLE_KEPT: Final = 5
"""Vectors of the hidden and of the intermediate size that a layer keeps per token for the backward
pass.
"""
LOGITS_KEPT: Final = 4
"""Copies of the logits: themselves, their logarithm, and the gradients of both."""
MOST_LOGITS: Final = 2**27
"""Logits held at a time: above it a trainer is taken that never holds all."""
LONGEST: Final = 32
"""Rows, by characters, of which tokens are counted."""
CHARACTERS_PER_TOKEN: Final = 3
"""Where no tokenizer.json tells; few texts have fewer."""
AROUND_MESSAGE: Final = 8
"""Tokens that a chat template writes around a message."""


def training_memory(model: Path, rows: Sequence[Row], args: FinetuneArgs) -> int:
    """Return about how many bytes training needs at its peak, with the longest of these rows."""
    config = read_object("config.json", model / "config.json")
    config = config.get("text_config") or config
    shapes = {name: shape for name, _, shape in tensors(model)}
    weights = sum(map(math.prod, shapes.values()))
    adapted = sum(
        args.r * sum(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and ".layers." in name
    )
    prompt, answer = longest_row(model, rows)
    columns = min(prompt + answer, args.max_length)
    batch = args.per_device_train_batch_size
    kept = HIDDEN_KEPT * _number(config, "hidden_size", "n_embd") + MIDDLE_KEPT * _number(
        config, "intermediate_size", "n_inner"
    )
    layers = _number(config, "num_hidden_layers", "n_layer")
    if args.gradient_checkpointing:
        # Of every layer its input alone, and of the one under way everything.
        per_token = layers * _number(config, "hidden_size", "n_embd") + kept
    else:
        per_token = layers * kept
    learned = min(answer, columns) if args.completion_only_loss else columns
    logits = min(batch * learned * _number(config, "vocab_size"), MOST_LOGITS)
    return (
        PROCESS
        + weights * WIDE
        + adapted * OF_ADAPTER
        + batch * columns * per_token * WIDE
        + logits * LOGITS_KEPT * WIDE
    )


def longest_row(model: Path, rows: Sequence[Row]) -> tuple[int, int]:
    """Return the tokens of the longest row's prompt and completion."""
    texts = [(_text(row.prompt), _text(row.completion)) for row in rows]
    longest = sorted(texts, key=lambda text: len(text[0]) + len(text[1]), reverse=True)[:LONGEST]
    counts = [tuple(len(ids) for ids in _tokens(model, list(text))) for text in longest]
    prompt, answer = max(counts, key=sum, default=(0, 0))
    messages = max((len(row.prompt) for row in rows if row.is_chat), default=0)
    return prompt + AROUND_MESSAGE * messages, answer + AROUND_MESSAGE


def _tokens(model: Path, texts: list[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    if not (model / "tokenizer.json").exists():
        return [[0] * (len(text) // CHARACTERS_PER_TOKEN) for text in texts]
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _text(part: Any) -> str:
    return part if isinstance(part, str) else "\n".join(message.content for message in part)


def _number(config: dict[str, Any], *names: str) -> int:
    """Return the first of these figures that a configuration has; 0 where it has none."""
    return next((int(config[name]) for name in names if config.get(name)), 0)
