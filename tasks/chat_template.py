"""Chats as the text that a model reads: the one place where a chat template is applied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line
from weighbridge.tasks.data import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rendered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any
) -> str:
    """Return messages as the tokenizer's chat template writes them.

    Args:
        tokenizer: With its chat template.
        messages: The turns.
        options: Of `apply_chat_template`, such as `add_generation_prompt`.

    Raises:
        BadInput: there is no template, or it refuses the messages.
    """
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
        reason = one_line(exc, 300)
        raise BadInput(
            doing, f"it refuses a row: {reason}", "change the data or the template"
        ) from exc
