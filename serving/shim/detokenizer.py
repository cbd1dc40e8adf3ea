"""Token ids to text, delta by delta: only whole characters, and nothing that may belong to a stop
sequence.
"""

import collections.abc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from weighbridge.serving.shim.protocol import Generator, Token
from weighbridge.serving.shim.requests import CompletionRequest

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What stands for the bytes of a character of which some are still to come."""


@dataclass(frozen=True)
class Delta:
    """Text that is added to an answer, and the tokens it came from."""

    text: str
    tokens: tuple[Token, ...]
    finish: Literal["stop", "length"] | None = None
    """Why the answer ends here; None where it goes on."""


class Detokenizer:
    """Text of a growing list of tokens.

    Each step decodes a few tokens again together with the new one: how a token reads depends on
    those before it.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._detokenize = detokenize
        self._tokens: list[int] = []
        self._start = 0
        """Where decoding starts: at the token before those whose text is still to be given out."""
        self._done = 0
        """Tokens whose text has been given out."""

    def push(self, token: int) -> str:
        """Return the text that this token adds; empty while a character is not whole."""
        self._tokens.append(token)
        text = self._new_text()
        if text.endswith(UNFINISHED):
            return ""
        # From near the end: decoding all tokens at each step takes the square of their number.
        self._start, self._done = self._done, len(self._tokens)
        return text

    def flush(self) -> str:
        """Return what was held back for bytes that never came."""
        text = self._new_text()
        self._done = len(self._tokens)
        return text

    def _new_text(self) -> str:
        before = self._detokenize(self._tokens[self._start : self._done])
        return self._detokenize(self._tokens[self._start :])[len(before) :]


class StopSequences:
    """Lets text through until a stop sequence comes, which is not part of the answer."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return what can be given out now, and whether a stop sequence has come."""
        text = self._held + text
        ends = [end for sequence in self._sequences if (end := text.find(sequence)) >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)], True
        end = len(text) - self._begun(text)
        self._held = text[end:]
        return text[:end], False

    def flush(self) -> str:
        """Return what was held back for a stop sequence that never came whole."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Return how many letters at the end may be the beginning of a stop sequence."""
        lengths = (
            length
            for sequence in self._sequences
            for length in range(min(len(sequence) - 1, len(text)), 0, -1)
            if text.endswith(sequence[:length])
        )
        return max(lengths, default=0)


def deltas(
    generator: Generator, request: CompletionRequest
) -> collections.abc.Generator[Delta, None, None]:
    """Yield the answer to a request; the last delta says why it is the last."""
    detokenizer, stops = Detokenizer(generator.detokenize), StopSequences(request.stops)
    waiting: list[Token] = []
    """Tokens whose text is not given out yet."""
    count = 0
    with closing(generator.generate(request.prompt, request.sampling)) as tokens:
        for token in tokens:
            count += 1
            waiting.append(token)
            # No text: what ends an answer is no part of it.
            if token.id in generator.ends:
                break
            text, stopped = stops.push(detokenizer.push(token.id))
            if stopped:
                yield Delta(text, tuple(waiting), "stop")
                return
            # The generator just ends at its last token, and does not say that it was cut.
            if count >= request.sampling.max_tokens:
                held_back, stopped = _flush(stops, detokenizer)
                yield Delta(text + held_back, tuple(waiting), "stop" if stopped else "length")
                return
            if text:
                yield Delta(text, tuple(waiting))
                waiting.clear()
    yield Delta(_flush(stops, detokenizer)[0], tuple(waiting), "stop")


def _flush(stops: StopSequences, detokenizer: Detokenizer) -> tuple[str, bool]:
    """Return all text that was held back, and whether it ends at a stop sequence."""
    text, stopped = stops.push(detokenizer.flush())
    return text + ("" if stopped else stops.flush()), stopped
