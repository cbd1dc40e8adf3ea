"""What the server asks of a library that holds a model."""

import collections.abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Token:
    """One generated token."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability before any temperature; None where nobody asked."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens of its place and their log-probabilities, as many as were asked for."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_tokens: int
    """At least 1; prompt and answer together fit into the context."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    seed: int | None = None
    """Equal seeds give equal answers."""
    logprobs: int | None = None
    """None: not wanted. Otherwise the token's own and this many of the likeliest."""


# Its full name: `Generator` below is the protocol of a model.
TokenStream = collections.abc.Generator[Token, None, None]
"""Tokens as they come; closed where nobody wants more."""


class Generator(Protocol):
    """A loaded model.

    Methods are called from several threads: at most `slots` of them generate or tell
    log-probabilities at a time.
    """

    context: int
    """Most tokens of prompt and answer together."""
    slots: int
    """Answers that may be generated at a time; more requests than that wait for their turn."""
    ends: frozenset[int]
    """Tokens that end an answer."""

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: special tokens in it are parsed.
            special: whether to add what belongs in front of a plain prompt.
        """

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids without special tokens; bytes of a character that is not
        whole become U+FFFD.
        """

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a chat, up to where the answer begins.

        Raises:
            ValueError: the template refuses the messages.
        """

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """Yield tokens as they come, with the one that ends the answer, at most `max_tokens`.

        It may be closed at any token, which must free what it holds.
        """

    def logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Return the natural-log probability of every completion token.

        Raises:
            NotImplementedError: the library cannot tell.
        """
