"""Share of answers that equal their reference."""

from typing import Any

import datasets
import evaluate

from weighbridge.tasks.metrics.rows import exact_match


class ExactMatch(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """Share of predictions equal to their reference, after the normalization asked for."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference.",
            citation="",
            inputs_description="predictions, references: lists of str. Returns exact_match in [0, "
            "1] and per_example.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], **options: Any
    ) -> dict[str, Any]:
        scores = exact_match.score(predictions, references, **options)
        return {"exact_match": sum(scores) / len(scores), "per_example": scores}
