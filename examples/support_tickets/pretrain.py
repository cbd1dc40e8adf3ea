"""Pre-train a 2.5-million-parameter Llama until it repeats what it reads.

At this size everything hangs on copying: a model that cannot repeat an order number from its prompt
will not learn to extract a product either. It appears suddenly, or not at all, so a probe decides
whether the model is worth keeping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import logger
from .corpus import ASSISTANT, END_OF_TURN, REPLIES, USER
from .world import Ticket

CONTEXT: Final = 1024
"""Longest input in tokens that the configuration allows; training shows about 120 at most."""
IGNORE: Final = -100
POOL: Final = 8
"""Batches that are drawn together and sorted by length."""


class ProbeNotReached(RuntimeError):
    """The trained model does not read well enough to be of use."""


@dataclass(frozen=True)
class Plan:
    """Size of the model and length of its training; the defaults are the ones that were found to
    work.
    """

    hidden: int = 256
    intermediate: int = 512
    layers: int = 3
    heads: int = 4
    steps: int = 500
    batch: int = 32
    muon_rate: float = 0.012
    adamw_rate: float = 3e-3
    warmup: int = 40
    probe_every: int = 100
    probe_floor: float = 0.9
    threads: int = 2


def pretrain(
    tokenizer: PreTrainedTokenizerFast,
    documents: Iterator[str],
    unseen: Sequence[Ticket],
    seed: int,
    plan: Plan,
) -> tuple[LlamaForCausalLM, float]:
    """Train on `documents`; return the model and its reading probe on the `unseen` tickets (0 to
    1).

    Raises ProbeNotReached when that value is below `plan.probe_floor`.
    """
    with _deterministic(seed, plan.threads):
        # Eager attention: at these lengths the backward pass takes 40 % less time than with the
        # fused kernel.
        model = LlamaForCausalLM._from_config(_config(tokenizer, plan), attn_implementation="eager")
        logger.info(
            "pre-training %.1fM parameters for %d steps", model.num_parameters() / 1e6, plan.steps
        )
        probe = _train(model, tokenizer, documents, unseen, plan)
    if probe < plan.probe_floor:
        raise ProbeNotReached(
            f"pre-training with seed {seed}: the reading probe reached {probe:.2f}, "
            f"{plan.probe_floor:.2f} is needed; try another seed"
        )
    return model, probe


@contextmanager
def _deterministic(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and set its threads; the caller gets both back as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def _config(tokenizer: PreTrainedTokenizerFast, plan: Plan) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden,
        intermediate_size=plan.intermediate,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        max_position_embeddings=CONTEXT,
        # The usual 0.02 is too quiet for so narrow a model: it never learns to copy.
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    documents: Iterator[str],
    unseen: Sequence[Ticket],
    plan: Plan,
) -> float:
    """Run all steps and return the reading probe after the last one."""
    probe = 0.0
    optimizers = _optimizers(model, plan)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, plan))
        for each in optimizers
    ]
    model.train()
    batches = _batches(tokenizer, documents, plan.batch)
    for step, (ids, labels) in enumerate(islice(batches, plan.steps), start=1):
        loss = _loss(model, ids, labels)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        model.zero_grad()
        if step % plan.probe_every == 0 or step == plan.steps:
            probe = reading_probe(model, tokenizer, unseen)
            logger.info("step %d/%d loss %.2f probe %.2f", step, plan.steps, loss.item(), probe)
    return probe


def _optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_rate, weight_decay=0.0),
        torch.optim.AdamW(others, lr=plan.adamw_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _rate(step: int, plan: Plan) -> float:
    """Factor on the learning rates: a linear warm-up, then a half cosine down to zero."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - plan.warmup) / max(1, plan.steps - plan.warmup))


def _batches(
    tokenizer: PreTrainedTokenizerFast, documents: Iterator[str], size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches, each of texts of about one length: that saves a third of all padding and so
    of the time.
    """
    while True:
        pool = sorted(islice(documents, POOL * size), key=len)
        for start in torch.randperm(POOL).tolist():
            yield _batch(tokenizer, pool[start * size : (start + 1) * size])


def _batch(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One text per row, padded on the right: token ids and labels, both (rows, longest text in
    tokens).
    """
    encoded = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(encoded, batch_first=True, padding_value=tokenizer.pad_token_id)
    return ids, pad(encoded, batch_first=True, padding_value=IGNORE)


def _logits(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    # No attention mask: padding comes last, and a causal model does not look ahead.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood per token, in nats."""
    logits = _logits(model, ids)[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)


@torch.no_grad()
def reading_probe(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tickets: Sequence[Ticket]
) -> float:
    """Share of `tickets` for which the model's reply gets order, team, product and priority right
    (0 to 1).

    The right reply is given token by token, and every token of it must be the model's first choice.
    """
    # Up to "order", the reply is free to begin in other ways; from there on the ticket alone
    # decides.
    starts = [
        f"{USER}{item.text}{END_OF_TURN}\n{ASSISTANT}Hi {item.name}, order" for item in tickets
    ]
    replies = [REPLIES[-1].format(**vars(item)) for item in tickets]
    texts = [
        start + reply.partition("order")[2] for start, reply in zip(starts, replies, strict=True)
    ]
    ids, labels = _batch(tokenizer, texts)
    for row, start in zip(labels, starts, strict=True):
        row[: len(tokenizer.encode(start))] = IGNORE
    wanted = labels[:, 1:]
    right = (_logits(model, ids)[:, :-1].argmax(-1) == wanted) | (wanted == IGNORE)
    return right.all(-1).float().mean().item()
