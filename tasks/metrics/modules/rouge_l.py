"""ROUGE-L on Google's rouge-score."""

from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer, tokenizers


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
        # None leaves rouge-score its own tokenizer, which alone knows use_stemmer.
        splitter = Whitespace() if tokenizer == "whitespace" else None
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=use_stemmer, tokenizer=splitter)
        pairs = zip(predictions, references, strict=True)
        scores = [
            float(scorer.score(reference, prediction)["rougeL"].fmeasure)
            for prediction, reference in pairs
        ]
        return {"rouge_l": sum(scores) / len(scores), "per_example": scores}


class Whitespace(tokenizers.Tokenizer):  # type: ignore[misc] # rouge-score has no types
    """Words between white space, as they are; rouge-score's own tokenizer knows a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()
