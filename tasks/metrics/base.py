"""How good an answer is: what a `metric` plugin offers."""

import math
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from weighbridge.core.errors import BadInput
from weighbridge.core.plugins import load

USES: Final = ("text", "questions", "logprobs", "distributions")
"""What metrics are called with."""


class Question(NamedTuple):
    """What a model was asked, as text, and what it answered."""

    prompt: str
    answer: str


class MetricArgs(BaseModel):
    """Base of every metric's arguments; `kind` names the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """Least and greatest value that a score can have."""
    kind: str

    def label(self) -> str:
        """Return the name under which the score is kept: `exact_match`."""
        return self.kind


def _number(value: Any) -> Any:
    # Records of earlier releases have null for what is not a number.
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_number)]


class Score(BaseModel):
    """One metric over a data set.

    Records of earlier releases have no `ids`, `clusters`, `weights`, `statistics` and `figure`.
    """

    # JSON has no NaN: without this it becomes null, which is no number when it is read again.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    value: Number
    low: Number
    """Lower end of the 95 % confidence interval of `value`."""
    high: Number
    per_example: list[Number]
    """One score per row, in the order of the rows; empty where the metric exists for a whole corpus
    alone.
    """
    greater_is_better: bool = True
    ids: list[str] = Field(
        default_factory=list,
        description="One per row: two scores are compared over the rows that both have.",
    )
    clusters: list[str] = Field(
        default_factory=list,
        description="What each row belongs to, such as its document: rows of one cluster are not "
        "independent. Empty: each row stands by itself.",
    )
    weights: list[float] = Field(
        default_factory=list,
        description="How much each row counts in `value`, such as its tokens; empty: all alike.",
    )
    statistics: list[list[float]] = Field(
        default_factory=list,
        description="Of a corpus figure: what it is computed of, per row, to be added up.",
    )
    figure: Literal["mean", "exponential", "bleu"] = Field(
        "mean",
        description="What `value` is: the weighted mean of `per_example`, the exponential of that "
        "of their logarithms, or corpus BLEU of `statistics`.",
    )

    notes: list[str] = Field(
        default_factory=list,
        description="What is to be known of how it was taken, as sentences: who graded, say.",
    )

    def __str__(self) -> str:
        """Return `0.984 (0.953–0.995)`, for people; small figures keep two digits that say
        something.
        """
        if not math.isfinite(self.value):
            return "not a number"
        # `#` keeps the zero at the end of 0.0050, which is a digit that says something.
        form = ".3f" if max(abs(self.value), abs(self.low), abs(self.high)) >= 0.01 else "#.2g"
        interval = f" ({self.low:{form}}–{self.high:{form}})" if self.low < self.high else ""
        return f"{self.value:{form}}{interval}"


class Metric(Protocol):
    """Scores predictions against references, or token log-probabilities of the references."""

    Args: ClassVar[type[MetricArgs]]
    uses: ClassVar[str]
    """`text`: called with predictions and references; `questions`: with what was asked as well;
    `logprobs`: called with log-probabilities per row; `distributions`: called with what the
    unquantized weights and the candidate hold likely.
    """

    def score(self, args: Any, predictions: list[Any], references: list[str]) -> Score:
        """Score every row.

        For `questions`, a prediction is a `Question`; for `logprobs`, the list of log-probabilities
        of its reference's tokens; for `distributions`, of pairs: of the unquantized weights and of
        the candidate, each a mapping from token ids to log-probabilities, of the likeliest tokens
        and of the reference's own.
        """


@runtime_checkable
class ScoresRows(Protocol):
    """What a metric may offer besides: the rows' scores alone, for less than `score` takes."""

    def score_rows(
        self, args: Any, predictions: list[Any], references: list[str]
    ) -> list[float]: ...


@runtime_checkable
class Checks(Protocol):
    """What a metric may offer besides, that asks a service or is fetched: whether it can be had."""

    def check(self, args: Any) -> None: ...


@cache
def load_metric(kind: str) -> Metric:
    """Return the metric plugin of this name.

    Raises:
        BadInput: There is none, or what a package registered is no metric.
    """
    plugin = load("metric", kind)
    # An entry point can name anything, and would fail after the fine-tune.
    if wrong := _no_metric(plugin):
        raise BadInput(f"loading metric '{kind}'", wrong, "correct or remove its package")
    metric: Metric = plugin()
    return metric


def _no_metric(plugin: Any) -> str:
    """Return what a plugin lacks of a metric; empty: nothing."""
    args, uses = getattr(plugin, "Args", None), getattr(plugin, "uses", None)
    if not (isinstance(args, type) and issubclass(args, MetricArgs)):
        return "its Args is no class derived from weighbridge.plugins.MetricArgs"
    if uses not in USES:
        return f"its uses is {uses!r}, and none of {', '.join(USES)}"
    return "" if callable(getattr(plugin, "score", None)) else "it has no method score"
