"""Metric `rouge_l`: the longest common subsequence of words."""

from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import compute, mean_score


class RougeLArgs(MetricArgs):
    """ROUGE-L's F-measure, as rouge-score computes it."""

    kind: Literal["rouge_l"] = "rouge_l"
    use_stemmer: bool = Field(False, description="Compare English words by their stem.")
    tokenizer: Literal["rouge", "whitespace"] = Field(
        "rouge",
        description="`rouge` sees a-z and 0-9 alone; `whitespace` keeps words of any script as they are.",
    )


class RougeL:
    """ROUGE-L of every answer, and its mean."""

    Args: ClassVar[type[MetricArgs]] = RougeLArgs
    uses: ClassVar[str] = "text"

    def score(self, args: RougeLArgs, predictions: list[str], references: list[str]) -> Score:
        from weighbridge.tasks.metrics.modules import rouge_l

        options = args.model_dump(exclude={"kind"})
        result = compute(rouge_l.RougeL, predictions=predictions, references=references, **options)
        return mean_score(result["per_example"])
