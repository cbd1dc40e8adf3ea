"""Metric `exact_match`: the share of answers that equal their reference."""

from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import compute, mean_score


class ExactMatchArgs(MetricArgs):
    """An answer counts when it equals its reference."""

    kind: Literal["exact_match"] = "exact_match"
    strip: bool = Field(True, description="White space at both ends does not count.")
    ignore_case: bool = Field(False, description="Upper and lower case are the same.")
    ignore_punctuation: bool = Field(False, description="ASCII punctuation does not count.")
    ignore_numbers: bool = Field(False, description="The digits 0 to 9 do not count.")
    regexes_to_ignore: tuple[str, ...] = Field(
        (), description="What these patterns match does not count."
    )


class ExactMatch:
    """1 for an answer that equals its reference, else 0."""

    Args: ClassVar[type[MetricArgs]] = ExactMatchArgs
    uses: ClassVar[str] = "text"

    def score(self, args: ExactMatchArgs, predictions: list[str], references: list[str]) -> Score:
        from weighbridge.tasks.metrics.modules import exact_match

        options = args.model_dump(exclude={"kind"})
        result = compute(
            exact_match.ExactMatch, predictions=predictions, references=references, **options
        )
        return mean_score(result["per_example"])
