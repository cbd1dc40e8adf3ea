"""Answers join, leave and fail between steps, and none disturbs another."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.waiting import soon
from weighbridge.serving.shim.batching import Batcher
from weighbridge.serving.shim.protocol import Sampling
from weighbridge.serving.shim.sampler import log_softmax

WORDS = 50
END = 0


class Sums:
    """A decoder whose next token is decided by all tokens before it; it keeps count of what is
    asked of it.
    """

    def __init__(self) -> None:
        self.states: dict[int, list[int]] = {}
        self.newest = 0
        self.most_at_once = 0
        self.pieces: list[int] = []
        self.fail_at = 10**9
        self.calls = 0

    def join(self, key: int) -> None:
        assert key not in self.states
        self.states[key], self.newest = [], key

    def leave(self, key: int) -> None:
        del self.states[key]

    def read(self, key: int, tokens: Sequence[int]) -> Any:
        assert key == self.newest
        self.pieces.append(len(tokens))
        return np.array([self._next(key, token) for token in tokens])

    def step(self, keys: Sequence[int], tokens: Sequence[int]) -> Any:
        self.most_at_once = max(self.most_at_once, len(keys))
        return np.array([self._next(key, token) for key, token in zip(keys, tokens, strict=True)])

    def _next(self, key: int, token: int) -> Any:
        self.calls += 1
        if self.calls >= self.fail_at:
            raise RuntimeError("the decoder broke")
        self.states[key].append(token)
        return logits_after(self.states[key])


def logits_after(tokens: Sequence[int]) -> Any:
    """Never the token that ends an answer, unless the tokens add up to a multiple of 97."""
    total = sum((place + 1) * token for place, token in enumerate(tokens))
    logits = np.sin(np.arange(WORDS, dtype=np.float32) * (total % 89 + 1))
    logits[END] = 9.0 if total % 97 == 0 else -9.0
    return logits


def alone(prompt: Sequence[int], count: int) -> list[int]:
    """What must come out, whatever else is going on."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(logits_after(tokens).argmax()))
        if tokens[-1] == END:
            break
    return tokens[len(prompt) :]


def batcher(decoder: Sums, slots: int = 3, chunk: int = 4) -> Batcher:
    return Batcher(decoder, slots=slots, chunk=chunk, ends=frozenset({END}))


def said(batch: Batcher, prompt: Sequence[int], count: int) -> list[int]:
    return [token.id for token in batch.generate(prompt, Sampling(count))]


def emptied(decoder: Sums) -> bool:
    """Whether no answer is left, soon: the last token is handed out a moment before its answer
    leaves.
    """
    return soon(lambda: not decoder.states, 30)


def test_every_answer_is_what_it_would_be_alone() -> None:
    decoder = Sums()
    batch = batcher(decoder)
    prompts = [
        [(number * 7 + place) % WORDS for place in range(1 + number % 11)] for number in range(40)
    ]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: said(batch, prompts[number], 5 + number), range(40)))
    assert found == [alone(prompt, 5 + number) for number, prompt in enumerate(prompts)]
    assert 1 < decoder.most_at_once <= 3
    assert max(decoder.pieces) == 4


def test_log_probabilities_are_those_of_the_completion() -> None:
    prompt, completion = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8]
    tokens = prompt + completion
    wanted = [
        float(log_softmax(logits_after(tokens[:place]).astype(np.float64))[tokens[place]])
        for place in range(len(prompt), len(tokens))
    ]
    for chunk in (1, 4, 5, 6, 100):
        assert batcher(Sums(), chunk=chunk).logprobs(prompt, completion) == pytest.approx(wanted)


def test_who_leaves_frees_the_slot() -> None:
    decoder = Sums()
    batch = batcher(decoder, slots=1)
    stream = batch.generate([5], Sampling(10**6))
    next(stream)
    stream.close()
    assert said(batch, [7, 8], 6) == alone([7, 8], 6)
    assert emptied(decoder)


def test_a_decoder_that_fails_ends_the_answers_under_way_and_serves_on() -> None:
    decoder = Sums()
    batch = batcher(decoder)
    decoder.fail_at = 6
    with pytest.raises(RuntimeError, match="the decoder broke"):
        said(batch, [1, 2, 3], 50)
    decoder.fail_at = decoder.calls + 3
    with pytest.raises(RuntimeError, match="the decoder broke"):
        batch.logprobs([1, 2], [3, 4])
    decoder.fail_at = 10**9
    assert said(batch, [1, 2, 3], 8) == alone([1, 2, 3], 8)
    assert emptied(decoder)


def test_a_batch_that_cannot_go_on_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would ever be answered again: who supervises it has to know."""
    killed = threading.Event()
    monkeypatch.setattr(
        "weighbridge.serving.shim.batching.os.kill", lambda pid, number: killed.set()
    )
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    decoder = Sums()
    decoder.leave = lambda key: 1 / 0  # type: ignore[method-assign,assignment]
    decoder.fail_at = 5
    with pytest.raises(RuntimeError, match="the decoder broke"):
        said(batcher(decoder), [1, 2, 3], 9)
    assert killed.wait(30)
