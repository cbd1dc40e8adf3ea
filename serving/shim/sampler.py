"""A row of logits to a token, in numpy: for engines whose library leaves that to its caller."""

from __future__ import annotations

from typing import Any

import numpy as np

from weighbridge.serving.shim.protocol import Sampling, Token


class Sampler:
    """Draws one answer's tokens; equal seeds give equal answers."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        # numpy takes no negative seed, and OpenAI's API does.
        seed = None if sampling.seed is None else sampling.seed % 2**64
        self._random = np.random.default_rng(seed)

    def draw(self, logits: Any) -> Token:
        """Return the next token.

        Args:
            logits: float32, one per token of the vocabulary.
        """
        sampling = self._sampling
        token = int(logits.argmax()) if sampling.temperature == 0 else self._sample(logits)
        if sampling.logprobs is None:
            return Token(token)
        logprobs = log_softmax(logits)
        likeliest = np.argsort(-logprobs)[: sampling.logprobs]
        return Token(
            token,
            float(logprobs[token]),
            tuple((int(other), float(logprobs[other])) for other in likeliest),
        )

    def _sample(self, logits: Any) -> int:
        sampling = self._sampling
        tokens = np.argsort(-logits)[: sampling.top_k or None]
        # In float64: numpy refuses probabilities whose sum is not close enough to 1.
        probabilities = np.exp(
            log_softmax(logits[tokens].astype(np.float64) / sampling.temperature)
        )
        # The likeliest ones that make up `top_p` together, the one that reaches it included.
        count = max(1, int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1)
        kept = probabilities[:count]
        return int(tokens[self._random.choice(len(kept), p=kept / kept.sum())])


def log_softmax(logits: Any) -> Any:
    """Return the natural logarithm of the probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
