"""Token ids to text, piece by piece: only whole characters, and nothing that may belong to a stop
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
class Piece:
    """Some text, and the tokens it came from."""

    text: str
    tokens: tuple[Token, ...]
    finish: Literal["", "stop", "length"] = ""
    """Why the answer ends here; empty where it goes on."""


class TextStream:
    """Text of a growing list of tokens.

    Each step decodes a few tokens again together with the new one: how a token reads depends on
    those before it.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._detokenize = detokenize
        self._tokens: list[int] = []
        self._start = 0
        """Where decoding starts: at the token before those that have not been told."""
        self._told = 0
        """Tokens whose text has been given out."""

    def push(self, token: int) -> str:
        """Text that this token adds; empty while a character is not whole."""
        self._tokens.append(token)
        new = self._new()
        if new.endswith(UNFINISHED):
            return ""
        self._start, self._told = self._told, len(self._tokens)
        return new

    def rest(self) -> str:
        """What was held back for bytes that never came."""
        new = self._new()
        self._told = len(self._tokens)
        return new

    def _new(self) -> str:
        before = self._detokenize(self._tokens[self._start : self._told])
        return self._detokenize(self._tokens[self._start :])[len(before) :]


class Stops:
    """Lets text through until a stop sequence comes, which is not part of the answer."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What can be given out now, and whether a stop sequence has come."""
        text = self._held + text
        places = [place for sequence in self._sequences if (place := text.find(sequence)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        kept = self._begun(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def rest(self) -> str:
        """What was held back for a stop sequence that never came whole."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Letters at the end that may be the beginning of a stop sequence."""
        lengths = (
            length
            for sequence in self._sequences
            for length in range(min(len(sequence) - 1, len(text)), 0, -1)
            if text.endswith(sequence[:length])
        )
        return max(lengths, default=0)


def pieces(
    generator: Generator, order: CompletionRequest
) -> collections.abc.Generator[Piece, None, None]:
    """The answer to an order; the last piece says why it is the last."""
    text, stops = TextStream(generator.detokenize), Stops(order.stops)
    waiting: list[Token] = []
    count = 0
    with closing(generator.generate(order.prompt, order.sampling)) as tokens:
        for token in tokens:
            count += 1
            waiting.append(token)
            if token.id in generator.ends:
                break
            said, stopped = stops.push(text.push(token.id))
            if stopped:
                yield Piece(said, tuple(waiting), "stop")
                return
            if count >= order.sampling.max_tokens:
                said, stopped = _last(said, stops, text)
                yield Piece(said, tuple(waiting), "stop" if stopped else "length")
                return
            if said:
                yield Piece(said, tuple(waiting))
                waiting.clear()
    yield Piece(_last("", stops, text)[0], tuple(waiting), "stop")


def _last(said: str, stops: Stops, text: TextStream) -> tuple[str, bool]:
    """All that is left to say, and whether it ends at a stop sequence."""
    more, stopped = stops.push(text.rest())
    return said + more + ("" if stopped else stops.rest()), stopped
