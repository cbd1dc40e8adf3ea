"""Metric `kl`: how far a candidate's distributions are from those of its unquantized weights."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import score_of

SMALLEST: Final = 1e-10
"""Probability below which the rest of a distribution is rounding."""
Distribution = Mapping[int, float]
"""Natural-log probabilities by token id, of some of the tokens."""


class KlArgs(MetricArgs):
    """Kullback-Leibler divergence from the unquantized weights, per token of the references."""

    bounds: ClassVar[tuple[float, float]] = (0, math.inf)
    kind: Literal["kl"] = "kl"
    top: int = Field(
        20,
        ge=1,
        le=1000,
        description="How many of the likeliest tokens are compared, at each token of a reference; "
        "all others count as one. vLLM tells no more than 20 unless it is told otherwise.",
    )


class Kl:
    """Nats per token, the mean over all tokens of the references; a lower bound.

    The tokens that both tell are compared one by one, all others as one. Merging outcomes can only
    make a divergence smaller (T. M. Cover, J. A. Thomas, Elements of Information Theory, 2006,
    section 2.7: the log-sum inequality), so what is not told can only be more damage, never less.
    Of whole distributions it is what `llama-perplexity --kl-divergence` calls mean KLD.
    """

    Args: ClassVar[type[MetricArgs]] = KlArgs
    uses: ClassVar[str] = "distributions"

    def score(
        self,
        args: KlArgs,
        predictions: Sequence[Sequence[tuple[Distribution, Distribution]]],
        references: list[str],
    ) -> Score:
        rows = [[divergence(mine, yours) for mine, yours in row] for row in predictions]
        tokens = [float(len(row)) for row in rows]
        value = math.fsum(map(math.fsum, rows)) / math.fsum(tokens)
        return score_of(
            value,
            [math.fsum(row) / len(row) for row in rows],
            weights=tokens,
            greater_is_better=False,
        )


def divergence(reference: Distribution, candidate: Distribution) -> float:
    """Return the divergence of one token, in nats, of the tokens that both tell and of the rest."""
    both = reference.keys() & candidate.keys()
    told = math.fsum(
        math.exp(reference[token]) * (reference[token] - candidate[token]) for token in both
    )
    before, after = (_rest(one, both) for one in (reference, candidate))
    rest = before * math.log(before / after) if before > SMALLEST else 0.0
    # Rounding alone makes less than nothing of it.
    return max(told + rest, 0.0)


def _rest(distribution: Distribution, told: Any) -> float:
    return max(1.0 - math.fsum(math.exp(distribution[token]) for token in told), SMALLEST)
