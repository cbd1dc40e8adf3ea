"""Metric `nll`: how surprised the model is by the references."""

import math
from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import bootstrap, compute


class NllArgs(MetricArgs):
    """Negative log-likelihood per reference token; it shows damage that answers don't show yet."""

    kind: Literal["nll"] = "nll"
    report: Literal["nll", "perplexity"] = Field(
        "nll", description="Nats per token, or their exponential."
    )

    def label(self) -> str:
        return self.report


class Nll:
    """Mean over all reference tokens; rows hold the mean over their own tokens."""

    Args: ClassVar[type[MetricArgs]] = NllArgs
    uses: ClassVar[str] = "logprobs"

    def score(self, args: NllArgs, predictions: list[list[float]], references: list[str]) -> Score:
        from weighbridge.tasks.metrics.modules import nll

        result = compute(nll.Nll, predictions=predictions, references=references)
        low, high = bootstrap(result["per_example"], weights=result["tokens"])
        figures = Score(
            value=result["nll"],
            low=low,
            high=high,
            per_example=result["per_example"],
            greater_is_better=False,
        )
        return figures if args.report == "nll" else _exponential(figures)


def _exponential(score: Score) -> Score:
    def raised(nats: float) -> float:
        return math.exp(min(nats, 700.0))

    ends = {"low": raised(score.low), "high": raised(score.high)}
    rows = [raised(row) for row in score.per_example]
    return Score(value=raised(score.value), per_example=rows, greater_is_better=False, **ends)
