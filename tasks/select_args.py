"""Limits on candidates and what decides among them, as a recipe says it."""

from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

Goal = Literal[
    "throughput", "requests", "cost", "request_cost", "latency", "quality", "memory", "size"
]


class SelectArgs(BaseModel):
    """Limits that every candidate must keep, and what decides among those that do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = Field(
        "exact_match", min_length=1, description="Label of the metric that means quality."
    )
    floor: float | None = Field(None, description="Worst acceptable value of `metric`.")
    max_loss: float | None = Field(
        0.02,
        ge=0,
        description="How much worse than the unquantized model `metric` may be, in the "
        "metric's own unit.",
    )
    max_nll_increase: float | None = Field(
        0.05,
        ge=0,
        description="How much higher than the unquantized model's the negative log-likelihood "
        "per token may be: it shows damage that the answers don't show yet. Not applied where it "
        "was not measured.",
    )
    on_doubt: Literal["accept", "refuse"] = Field(
        "accept",
        description="What to do when a loss is within its limit, but its 95 % confidence interval "
        "reaches beyond.",
    )
    max_ttft_p95: float | None = Field(
        None, gt=0, description="Seconds to the first token, 95th percentile."
    )
    min_tokens_per_second: float | None = Field(
        None, gt=0, description="Output tokens of all streams together."
    )
    min_requests_per_second: float | None = Field(
        None, gt=0, description="Answers of all streams together: says more where they are short."
    )
    max_memory: ByteSize | None = Field(
        None, gt=0, description="Peak of the whole engine: bytes, or `2 GiB`."
    )
    max_size: ByteSize | None = Field(
        None, gt=0, description="Of the artifact: bytes, or `500 MiB`."
    )
    max_cost: float | None = Field(
        None, gt=0, description="Per million output tokens, in the recipe's currency."
    )
    max_request_cost: float | None = Field(
        None, gt=0, description="Per 1,000 requests, in the recipe's currency."
    )
    max_errors: float = Field(
        0.0, ge=0, le=1, description="Share of requests under load that may fail."
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        description="Load at which speed counts, one of those weighed; empty: the highest.",
    )
    objective: Goal = Field(
        "throughput",
        description="What decides among the candidates within the limits: tokens per second "
        "(`throughput`) or per price (`cost`), requests per second (`requests`) or per price "
        "(`request_cost`) where answers are short, and so on.",
    )
    min_improvement: float = Field(
        0.05,
        ge=0,
        description="How much better than the champion's the objective must be to take its place: "
        "a share of it (0.05 is 5 %); for objective `quality` in the metric's own unit.",
    )
