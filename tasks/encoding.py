"""Rows to token ids: the same for training, for log-probabilities and for every engine that is
weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.core.errors import BadInput
from weighbridge.tasks.data import Message, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One row as token ids; `prompt + completion` is what the model is trained on."""

    prompt: list[int]
    completion: list[int]
    """Up to and with the token that ends the answer."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's folder; code that may lie beside it is never run.

    Raises:
        BadInput: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as exc:
        wrong = " ".join(str(exc).split())[:300]
        raise BadInput(
            "loading the tokenizer", wrong, "give a model with a tokenizer.json"
        ) from exc
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Encoded]:
    """Return the token ids of every row.

    The prompt's are exactly those that it has at inference, when no completion follows it.

    Raises:
        BadInput: the rows are chats and the tokenizer has no chat template, or the template
            refuses them.
    """
    if not rows:
        return []
    texts = [_texts(tokenizer, row) for row in rows]
    # A chat template writes every special token itself; in plain text the tokenizer adds what
    # belongs in front.
    special = not rows[0].is_chat
    prompts = _ids(tokenizer, [prompt for prompt, _ in texts], special=special)
    wholes = _ids(tokenizer, [prompt + completion for prompt, completion in texts], special=special)
    completions = [
        whole[len(prompt) :] if whole[: len(prompt)] == prompt else None
        for prompt, whole in zip(prompts, wholes, strict=True)
    ]
    # Where a token spans the border, the completion is encoded alone: at inference the prompt ends
    # there.
    torn = [index for index, completion in enumerate(completions) if not completion]
    for index, ids in zip(
        torn, _ids(tokenizer, [texts[index][1] for index in torn], special=False), strict=True
    ):
        completions[index] = ids
    return [
        Encoded(prompt, _ended(tokenizer, completion or [], row))
        for prompt, completion, row in zip(prompts, completions, rows, strict=True)
    ]


def _texts(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[str, str]:
    """Return prompt and completion as the model reads them."""
    if isinstance(row.prompt, str) or isinstance(row.completion, str):
        return str(row.prompt), str(row.completion)
    prompt = _rendered(tokenizer, row.prompt, add_generation_prompt=True)
    whole = _rendered(tokenizer, [*row.prompt, *row.completion])
    if whole.startswith(prompt):
        return prompt, whole.removeprefix(prompt)
    if len(row.completion) == 1:
        # Templates for reasoning models may render a prompt differently once its answer is known.
        return prompt, row.completion[0].content + str(tokenizer.eos_token or "")
    raise BadInput(
        "applying the chat template",
        "it renders the prompt differently when several messages follow it",
        "let each row's completion be one message",
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any
) -> str:
    doing = "applying the chat template"
    if not tokenizer.chat_template:
        remedy = "use an instruction-tuned model, or plain text (data.columns with `chat: false`)"
        raise BadInput(
            doing, "the data are chats and the model's tokenizer has no chat template", remedy
        )
    try:
        chat = [message.model_dump() for message in messages]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options))
    except Exception as exc:  # it is a program: a range too long, a name that is not there, …
        reason = " ".join((str(exc) or type(exc).__name__).split())[:300]
        raise BadInput(
            doing, f"it refuses a row: {reason}", "change the data or the template"
        ) from exc


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False
    )["input_ids"]
    return ids


def _ended(tokenizer: PreTrainedTokenizerBase, completion: list[int], row: Row) -> list[int]:
    """Cut what follows the last end token; plain text gets one."""
    end = tokenizer.eos_token_id
    # ChatML and others write a line break after the end token. An engine has stopped by then, so
    # nothing is to be learnt of it.
    if end in completion:
        return completion[: len(completion) - completion[::-1].index(end)]
    return completion if row.is_chat or end is None else [*completion, end]
