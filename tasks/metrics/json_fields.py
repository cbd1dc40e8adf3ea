"""Metric `json_fields`: the share of right fields in JSON answers."""

from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import compute, mean_score


class JsonFieldsArgs(MetricArgs):
    """How much of a JSON answer is right; an answer that is not JSON is wrong."""

    kind: Literal["json_fields"] = "json_fields"
    fields: tuple[str, ...] = Field(
        (),
        description="Only these paths, and what lies below them, count: `team`, `customer.name`. Empty: all.",
    )


class JsonFields:
    """Right fields among those of answer and reference together: a missing and an invented field
    both cost.
    """

    Args: ClassVar[type[MetricArgs]] = JsonFieldsArgs
    uses: ClassVar[str] = "text"

    def score(self, args: JsonFieldsArgs, predictions: list[str], references: list[str]) -> Score:
        from weighbridge.tasks.metrics.modules import json_fields

        inputs = {"predictions": predictions, "references": references, "fields": args.fields}
        return mean_score(compute(json_fields.JsonFields, **inputs)["per_example"])
