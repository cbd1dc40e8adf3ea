"""Negative log-likelihood and perplexity of the references."""

import math
from typing import Any

import datasets
import evaluate


class Nll(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """How surprised the model is by the references: natural-log probabilities of their tokens go
    in.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean negative log-likelihood per reference token in nats, and its "
            "exponential, perplexity.",
            citation="",
            inputs_description=(
                "predictions: per row the natural-log probabilities of the reference's tokens; "
                "references: list of "
                "str. Returns nll, perplexity, per_example (nats per token of each row) and "
                "tokens (their number)."
            ),
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[str]) -> dict[str, Any]:
        tokens = [len(row) for row in predictions]
        if not all(tokens):
            raise ValueError(f"row {tokens.index(0)} has no tokens")
        nll = -sum(map(math.fsum, predictions)) / sum(tokens)
        rows = [-math.fsum(row) / len(row) for row in predictions]
        return {
            "nll": nll,
            # e to the power of 710 is more than a float can hold.
            "perplexity": math.exp(min(nll, 700.0)),
            "per_example": rows,
            "tokens": tokens,
        }
