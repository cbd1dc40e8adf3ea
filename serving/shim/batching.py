"""Continuous batching over any decoder that keeps the state of several answers. Needs numpy.

One thread runs the decoder: a chunk of the newest prompt, then one more token of every answer, and
so on. An answer joins and leaves between two steps.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from weighbridge.serving.shim.protocol import Sampling, Token, TokenStream
from weighbridge.serving.shim.sampler import Sampler, log_softmax


class Decoder(Protocol):
    """A model with the state of the answers under way, each known by a key. One thread calls it."""

    def join(self, key: int) -> None:
        """Make room for another answer; the one that joined before has been read, or has left."""

    def leave(self, key: int) -> None:
        """Forget the state of an answer."""

    def read(self, key: int, tokens: Sequence[int]) -> Any:
        """Read on in the prompt of the answer that joined last; return float32 logits of shape
        (tokens, vocabulary).
        """

    def step(self, keys: Sequence[int], tokens: Sequence[int]) -> Any:
        """Append a token to every answer whose prompt is read; return float32 logits of shape
        (answers, vocabulary).
        """


@dataclass(eq=False)
class _Answer:
    """One answer under way."""

    tokens: list[int]
    """The prompt; where log-probabilities are asked for, the completion as well."""
    sampler: Sampler | None = None
    """None: log-probabilities are asked for, nothing is generated."""
    tokens_left: int = 0
    """How many may still be generated."""
    scored_from: int = 0
    read: int = 0
    """How many of `tokens` have been read."""
    last_token: int = 0
    """The token generated last, which the decoder has not seen yet."""
    logprobs: list[float] = field(default_factory=list)
    output: queue.SimpleQueue[Token | Exception | None] = field(default_factory=queue.SimpleQueue)
    abandoned: bool = False
    """Whether nobody wants the rest."""


class Batcher:
    """Runs a decoder for up to `slots` answers at a time."""

    def __init__(self, decoder: Decoder, *, slots: int, chunk: int, ends: frozenset[int]) -> None:
        self._decoder = decoder
        self._slots, self._chunk, self._ends = slots, chunk, ends
        self._answers: dict[int, _Answer] = {}
        """Those whose prompt is read."""
        self._reading: tuple[int, _Answer] | None = None
        self._keys = 0
        self._arrivals: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="batch").start()

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Yield tokens as they come; closing it frees the slot."""
        answer = _Answer(list(prompt), Sampler(sampling), sampling.max_tokens)
        self._arrivals.put(answer)
        try:
            while (item := answer.output.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            answer.abandoned = True

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Return the natural-log probability of every completion token."""
        answer = _Answer([*prompt, *completion], scored_from=len(prompt))
        self._arrivals.put(answer)
        if isinstance(failure := answer.output.get(), Exception):
            raise failure
        return answer.logprobs

    def _work(self) -> None:
        try:
            while True:
                self._turn()
        finally:
            # Without this thread nothing is ever answered: whoever supervises the process has to
            # know.
            os.kill(os.getpid(), signal.SIGTERM)

    def _turn(self) -> None:
        try:
            self._admit()
            # A chunk, not the whole prompt: the answers under way go on between two chunks.
            if self._reading:
                self._read(*self._reading)
            if self._answers:
                self._step()
        except Exception as exc:
            # Whatever the library raises ends these answers, and not the server.
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        failed = {**self._answers, **dict([self._reading] if self._reading else [])}
        self._answers, self._reading = {}, None
        for key, answer in failed.items():
            answer.output.put(exc)
            self._decoder.leave(key)

    def _admit(self) -> None:
        """Drop abandoned answers and take in new ones; wait where there is nothing to do."""
        for key in [key for key, answer in self._answers.items() if answer.abandoned]:
            self._decoder.leave(key)
            del self._answers[key]
        if self._reading and self._reading[1].abandoned:
            self._decoder.leave(self._reading[0])
            self._reading = None
        while self._reading is None and len(self._answers) < self._slots:
            try:
                answer = self._arrivals.get(block=not self._answers)
            except queue.Empty:
                return
            if not answer.abandoned:
                self._keys += 1
                self._decoder.join(self._keys)
                self._reading = (self._keys, answer)

    def _read(self, key: int, answer: _Answer) -> None:
        """Read the next chunk of the newest prompt."""
        chunk = answer.tokens[answer.read : answer.read + self._chunk]
        logits = self._decoder.read(key, chunk)
        if answer.sampler is None:
            _score(answer, logits)
        answer.read += len(chunk)
        if answer.read < len(answer.tokens):
            return
        self._reading = None
        if answer.sampler is None:
            answer.output.put(None)
            self._decoder.leave(key)
        else:
            self._answers[key] = answer
            self._generate(key, answer, logits[-1])

    def _step(self) -> None:
        """Generate one more token of every answer."""
        answers = list(self._answers.items())
        logits = self._decoder.step(
            [key for key, _ in answers], [answer.last_token for _, answer in answers]
        )
        for (key, answer), row in zip(answers, logits, strict=True):
            self._generate(key, answer, row)

    def _generate(self, key: int, answer: _Answer, logits: Any) -> None:
        """Draw a token and give it out; the last one ends the answer."""
        assert answer.sampler is not None
        token = answer.sampler.draw(logits)
        answer.last_token, answer.tokens_left = token.id, answer.tokens_left - 1
        answer.output.put(token)
        # The token that ends the answer is given out as well: the reader knows it by its id.
        if answer.tokens_left <= 0 or token.id in self._ends:
            answer.output.put(None)
            del self._answers[key]
            self._decoder.leave(key)


def _score(answer: _Answer, logits: Any) -> None:
    """Keep what the logits of a chunk say of the tokens after each."""
    first = max(answer.read, answer.scored_from - 1)
    followed = answer.tokens[first + 1 : answer.read + len(logits) + 1]
    if followed:
        start = first - answer.read
        logprobs = log_softmax(logits[start : start + len(followed)].astype(np.float64))
        answer.logprobs += [float(logprobs[row, token]) for row, token in enumerate(followed)]
