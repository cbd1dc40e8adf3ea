"""What a candidate's engine holds likely at the tokens of the references, where its API tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighbridge.serving.engines.base import Engine
from weighbridge.tasks.data import Row
from weighbridge.tasks.encoding import Encoded, encode, load_tokenizer
from weighbridge.tasks.metrics.base import MetricArgs
from weighbridge.tasks.scoring import Compared, needs_logprobs, tokens_compared

NO_REFERENCE = "there are no unquantized weights of it here to compare with"
OTHER_TOKENS = "its tokens of the references are others than those of the unquantized weights"
AskAll = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
"""Asks for every item, as many at a time as is allowed, and returns the answers in their order."""
Known = Mapping[str, Sequence[dict[int, float]]]
"""By id of a row what is likely at each token of its reference."""


@dataclass(frozen=True)
class Likelihoods:
    """What was told of one split's references."""

    logprobs: list[list[float]] | None = None
    """By row, of each token of its reference."""
    distributions: Compared | None = None
    """By row and token, what the unquantized weights and the engine hold likely."""
    untold: str = ""
    """Why something that a metric asks for is missing."""


@dataclass(frozen=True)
class Asked:
    """A running engine, and who is asked."""

    url: str
    engine: Engine
    tokenizer: Path
    all: AskAll

    def likelihoods(
        self, rows: Sequence[Row], metrics: Sequence[MetricArgs], reference: Known | None
    ) -> Likelihoods:
        """Return what the metrics need, each reference read once.

        Args:
            rows: with ids.
            metrics: the recipe's.
            reference: of the unquantized weights; None where there are none.
        """
        top, asks = tokens_compared(metrics), needs_logprobs(metrics)
        untold = NO_REFERENCE if top and reference is None else ""
        if not rows or not (asks or (top and reference is not None)):
            return Likelihoods(untold=untold)
        encoded = encode(load_tokenizer(self.tokenizer), list(rows))
        if top and reference is not None:
            try:
                return _compared(rows, encoded, self._distributions(encoded, top), reference)
            # Its API cannot tell: what it can tell is asked below.
            except NotImplementedError as exc:
                untold = str(exc)
        return self._logprobs(encoded, untold) if asks else Likelihoods(untold=untold)

    def _distributions(
        self, encoded: Sequence[Encoded], top: int
    ) -> Sequence[Sequence[dict[int, float]]]:
        def ask(row: Encoded) -> list[dict[int, float]]:
            return self.engine.token_distributions(self.url, row.prompt, row.completion, top)

        return self.all(ask, encoded)

    def _logprobs(self, encoded: Sequence[Encoded], untold: str) -> Likelihoods:
        def ask(row: Encoded) -> list[float]:
            return self.engine.token_logprobs(self.url, row.prompt, row.completion)

        try:
            return Likelihoods(logprobs=self.all(ask, encoded), untold=untold)
        except NotImplementedError as exc:
            return Likelihoods(untold=str(exc))


def _compared(
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    known: Sequence[Sequence[dict[int, float]]],
    reference: Known,
) -> Likelihoods:
    logprobs = [
        [one[token] for one, token in zip(told, row.completion, strict=True)]
        for told, row in zip(known, encoded, strict=True)
    ]
    expected = [reference.get(row.id, ()) for row in rows]
    same = all(
        len(tokens) == len(row.completion)
        and all(token in one for token, one in zip(row.completion, tokens, strict=True))
        for tokens, row in zip(expected, encoded, strict=True)
    )
    if not same:
        return Likelihoods(logprobs, untold=OTHER_TOKENS)
    pairs = zip(expected, known, strict=True)
    return Likelihoods(logprobs, [list(zip(*pair, strict=True)) for pair in pairs])
