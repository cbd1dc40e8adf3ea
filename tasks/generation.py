"""Answers and log-probabilities of a model that is loaded here. Imports torch: import it late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from weighbridge.tasks.encoding import Encoded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOGITS_AT_ONCE: Final = 2**27
"""Most logits held at a time: 0.5 GB in float32, whatever the vocabulary."""
Advance = Callable[[int], None]
"""Takes the rows done since the last call."""


def _silent(rows: int) -> None:
    """Do nothing: for callers who show no progress."""


@torch.inference_mode()
def answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    advance: Advance = _silent,
) -> list[str]:
    """Return the greedy answer to each prompt, in their order, without special tokens.

    An answer ends before the first of the tokens in `stops`. Prompts of like length share a batch,
    so that little is padded.
    """
    from transformers import GenerationConfig

    # Any token will do where the tokenizer names none: the mask hides it.
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (*stops, 0)[0]
    options = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or None,
        pad_token_id=pad,
    )
    # Where ours says nothing, the model's own settings of sampling would be filled in.
    model.generation_config = options
    model.eval()
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    texts: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = _left_padded([prompts[index] for index in batch], pad, model.device)
        generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=options)[
            :, ids.shape[1] :
        ]
        ids_of_answers = [_before_stop(answer, stops) for answer in generated.tolist()]
        texts.update(
            zip(
                batch, tokenizer.batch_decode(ids_of_answers, skip_special_tokens=True), strict=True
            )
        )
        advance(len(batch))
    return [texts[index] for index in range(len(prompts))]


def _before_stop(answer: list[int], stops: Sequence[int]) -> list[int]:
    # An end that is no special token would be decoded as text.
    return answer[: next((n for n, token in enumerate(answer) if token in stops), len(answer))]


def logprobs(
    model: Any, rows: Sequence[Encoded], *, batch_size: int, advance: Advance = _silent
) -> list[list[float]]:
    """Return the natural-log probability of every completion token.

    It takes one forward pass over prompt and completion.
    """
    found = distributions(model, rows, 0, batch_size=batch_size, advance=advance)
    return [
        [known[token] for token, known in zip(row.completion, tokens, strict=True)]
        for row, tokens in zip(rows, found, strict=True)
    ]


@torch.inference_mode()
def distributions(
    model: Any, rows: Sequence[Encoded], top: int, *, batch_size: int, advance: Advance = _silent
) -> list[list[dict[int, float]]]:
    """Return, at every completion token, natural-log probabilities by token id: of the `top`
    likeliest ones, and of the token itself.
    """
    model.eval()
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    by_row: dict[int, list[dict[int, float]]] = {}
    for batch in _batches(order, rows, batch_size, model.config.get_text_config().vocab_size):
        chosen = [rows[index] for index in batch]
        by_row.update(zip(batch, _of_completions(model, chosen, top), strict=True))
        advance(len(batch))
    return [by_row[index] for index in range(len(rows))]


def _of_completions(model: Any, rows: list[Encoded], top: int) -> list[list[dict[int, float]]]:
    # Padded on the left, all completions end in the last column: only the logits of the last
    # columns are needed.
    ids, mask = _left_padded([row.prompt + row.completion for row in rows], 0, model.device)
    longest = max(len(row.completion) for row in rows)
    # Without position ids, models count from the first column, which here is padding.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    # In float32: in 16 bits a log-probability keeps two or three digits.
    probabilities = output.logits[:, :-1].float().log_softmax(-1)[:, -longest:]
    likeliest = probabilities.topk(min(top, probabilities.shape[-1])).indices
    tokens = torch.cat([likeliest, ids[:, -longest:].unsqueeze(-1)], dim=-1)
    values = probabilities.gather(-1, tokens).cpu().tolist()
    return [
        [
            dict(zip(*place, strict=True))
            for place in zip(
                names[longest - len(row.completion) :],
                line[longest - len(row.completion) :],
                strict=True,
            )
        ]
        for names, line, row in zip(tokens.cpu().tolist(), values, rows, strict=True)
    ]


def _batches(
    order: list[int], rows: Sequence[Encoded], size: int, vocabulary: int
) -> Iterator[list[int]]:
    """Yield at most `size` rows each, and no more than fit into `LOGITS_AT_ONCE`."""
    batch: list[int] = []
    longest = 0
    for index in order:
        longest_with_row = max(longest, len(rows[index].completion) + 1)
        if batch and (
            len(batch) == size or (len(batch) + 1) * longest_with_row * vocabulary > LOGITS_AT_ONCE
        ):
            yield batch
            batch, longest_with_row = [], len(rows[index].completion) + 1
        batch.append(index)
        longest = longest_with_row
    if batch:
        yield batch


def _left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    # On the left, because generation goes on after the last column of every row.
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
