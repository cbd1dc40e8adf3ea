"""From a row of logits to a token, in numpy: for engines whose library leaves that to its caller."""

from __future__ import annotations

from typing import Any

import numpy as np

from weighbridge.serving.shim.protocol import Sampling, Token


class Sampler:
    """Draws one answer's tokens; equal seeds give equal answers."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        seed = None if sampling.seed is None else sampling.seed % 2**64
        self._random = np.random.default_rng(seed)

    def draw(self, logits: Any) -> Token:
        """A token for the place whose logits (float32, one per token of the vocabulary) these are."""
        wanted = self._sampling
        token = int(logits.argmax()) if wanted.temperature == 0 else self._sample(logits)
        if wanted.logprobs is None:
            return Token(token)
        known = log_softmax(logits)
        likeliest = np.argsort(-known)[: wanted.logprobs]
        return Token(
            token,
            float(known[token]),
            tuple((int(other), float(known[other])) for other in likeliest),
        )

    def _sample(self, logits: Any) -> int:
        wanted = self._sampling
        order = np.argsort(-logits)[: wanted.top_k or None]
        chances = np.exp(log_softmax(logits[order].astype(np.float64) / wanted.temperature))
        # The likeliest ones that make up `top_p` together, the one that reaches it included.
        count = max(1, int(np.searchsorted(np.cumsum(chances), wanted.top_p)) + 1)
        chances = chances[:count]
        return int(order[self._random.choice(len(chances), p=chances / chances.sum())])


def log_softmax(logits: Any) -> Any:
    """Natural logarithm of the probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
