"""Limits on candidates and what decides among them, as a recipe says it."""

from typing import Final, Literal, Self

from pydantic import BaseModel, ByteSize, ConfigDict, Field, model_validator

Goal = Literal[
    "throughput",
    "requests",
    "cost",
    "request_cost",
    "latency",
    "quality",
    "memory",
    "size",
    "goodput",
]

LIMITED: Final = ("empty", "truncated", "refused", "malformed")
"""Faults of answers whose share a recipe can limit, as `max_…`."""


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
        description="How much worse than its own unquantized weights a candidate may be in "
        "`metric`, in the metric's own unit.",
    )
    max_nll_increase: float | None = Field(
        0.05,
        ge=0,
        description="How much higher than that of its own unquantized weights the negative "
        "log-likelihood per token may be: it shows damage that the answers don't show yet. Not "
        "applied where it was not measured.",
    )
    max_kl: float | None = Field(
        None, gt=0, description="How far the metric `kl` may be from 0, in nats per token."
    )
    margin: float = Field(
        0.02,
        gt=0,
        description="How much worse than the champion's `metric` may be, in its own unit, where "
        "the objective is better: the rule of challenger against champion alone.",
    )
    on_doubt: Literal["accept", "refuse"] = Field(
        "refuse",
        description="What becomes of a candidate whose floor or loss is undecided, its 95 % "
        "interval reaching over the limit: not released (`refuse`), or released where the figure "
        "itself is within the limit (`accept`; the report says so).",
    )
    max_length_change: float | None = Field(
        0.1,
        gt=0,
        description="How far the mean tokens of an answer may be from those of its own unquantized "
        "weights, up and down, as a share: tokens per second are of the same work only then.",
    )
    max_empty: float | None = Field(
        None, ge=0, lt=1, description="Share of answers that may be empty."
    )
    max_truncated: float | None = Field(
        None, ge=0, lt=1, description="Share of answers that may be cut off before their end."
    )
    max_refused: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of answers that may decline to answer (`evaluate.answers.refusals`).",
    )
    max_malformed: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of answers that may be in another format than is asked for "
        "(`evaluate.answers.format`, `json_schema`).",
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
        "(`request_cost`) where answers are short, requests per second that keep the limits of "
        "`weigh` (`goodput`, with weigh.arrivals `poisson`), and so on.",
    )
    min_improvement: float = Field(
        0.05,
        ge=0,
        description="How much better than the champion's the objective must at least be, by the "
        "lower end of its interval, to take its place: a share of it (0.05 is 5 %). Not applied "
        "where quality is the objective: there it is enough to be better beyond doubt.",
    )

    @model_validator(mode="after")
    def _can_be_shown(self) -> Self:
        """Refuse a limit that no number of rows can show."""
        for name in ("max_loss", "max_nll_increase", *(f"max_{fault}" for fault in LIMITED)):
            if getattr(self, name) == 0 and self.on_doubt == "refuse":
                raise ValueError(
                    f"{name} 0 cannot be shown by any number of rows: give a limit above 0, or "
                    "`on_doubt: accept`"
                )
        return self

    def most(self, fault: str) -> float | None:
        """Return the share of answers that may have a fault, one of `LIMITED`."""
        limit: float | None = getattr(self, f"max_{fault}")
        return limit

    @property
    def needs_price(self) -> str:
        """Return the field that asks for a cost; empty where none does."""
        if self.objective in ("cost", "request_cost"):
            return f"objective {self.objective}"
        if self.max_cost is not None:
            return "max_cost"
        return "max_request_cost" if self.max_request_cost is not None else ""
