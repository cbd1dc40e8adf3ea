"""Rows to token ids: the same for training, for log-probabilities and for every engine that is
weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line
from weighbridge.tasks.answer_end import token_that_ends
from weighbridge.tasks.chat_template import rendered
from weighbridge.tasks.data import Row

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
        wrong = one_line(exc, 300)
        raise BadInput(
            "loading the tokenizer", wrong, "give a model with a tokenizer.json"
        ) from exc
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[Encoded]:
    """Return the token ids of every row.

    The prompt's are exactly those that it has at inference, when no completion follows it.

    Raises:
        BadInput: the rows are chats and the tokenizer has no chat template, the template refuses
            them, nothing ends an answer, or an answer holds the token that ends it.
    """
    if not rows:
        return []
    end = token_that_ends(tokenizer, chat=rows[0].is_chat)
    _refuse_ends_within(tokenizer, rows, end)
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
        Encoded(prompt, _ended(completion or [], end))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def mean_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float | None:
    """Return how many tokens a text has on average; None of no text."""
    if not texts:
        return None
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return sum(map(len, ids)) / len(texts)


def _texts(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[str, str]:
    """Return prompt and completion as the model reads them."""
    if isinstance(row.prompt, str) or isinstance(row.completion, str):
        return str(row.prompt), str(row.completion)
    prompt = rendered(tokenizer, row.prompt, add_generation_prompt=True)
    whole = rendered(tokenizer, [*row.prompt, *row.completion])
    if whole.startswith(prompt):
        return prompt, whole.removeprefix(prompt)
    if len(row.completion) == 1:
        # Templates for reasoning models may render a prompt differently once its answer is known.
        return prompt, row.completion[0].content
    raise BadInput(
        "applying the chat template",
        "it renders the prompt differently when several messages follow it",
        "let each row's completion be one message",
    )


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False
    )["input_ids"]
    return ids


def _ended(completion: list[int], end: int) -> list[int]:
    """Cut what follows the last end token; an answer without one gets it."""
    # ChatML and others write a line break after the end token. An engine has stopped by then, so
    # nothing is to be learnt of it.
    if end in completion:
        return completion[: len(completion) - completion[::-1].index(end)]
    return [*completion, end]


def _refuse_ends_within(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], end: int) -> None:
    """Raise BadInput for an answer that no engine could give: it would stop in the middle."""
    ends = {str(tokenizer.convert_ids_to_tokens(end)), str(tokenizer.eos_token or "")} - {""}
    for number, row in enumerate(rows, start=1):
        answers = (
            # Plain text may end with the token: many write it there themselves.
            [row.completion.removesuffix(str(tokenizer.eos_token))]
            if isinstance(row.completion, str)
            else [message.content for message in row.completion]
        )
        for token in ends:
            if any(token in answer for answer in answers):
                raise BadInput(
                    "encoding the data",
                    f"the answer of row {number} holds {token}, at which every engine stops",
                    "take it out of the data",
                )
