"""ROUGE-L on Google's rouge-score."""

from typing import Any

import datasets
import evaluate

from weighbridge.tasks.metrics.rows import rouge_l


class RougeL(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """F-measure of the longest common subsequence of words."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="F-measure of the longest common subsequence of words between prediction "
            "and reference.",
            citation="Chin-Yew Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.",
            inputs_description="predictions, references: lists of str. Returns rouge_l in [0, 1] "
            "and per_example.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        use_stemmer: bool = False,
        tokenizer: str = "rouge",
    ) -> dict[str, Any]:
        scores = rouge_l.score(predictions, references, use_stemmer, tokenizer)
        return {"rouge_l": sum(scores) / len(scores), "per_example": scores}
