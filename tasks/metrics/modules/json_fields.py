"""Share of right fields in answers that should be JSON."""

from typing import Any

import datasets
import evaluate

from weighbridge.tasks.metrics.rows import json_fields


class JsonFields(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """Mean share of the fields of prediction and reference that are in both and equal."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of JSON fields that are right. What cannot be parsed is wrong, on "
            "either side.",
            citation="",
            inputs_description="predictions, references: lists of str. Returns json_fields in [0, "
            "1] and per_example.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], fields: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        scores = json_fields.score(predictions, references, fields)
        return {"json_fields": sum(scores) / len(scores), "per_example": scores}
