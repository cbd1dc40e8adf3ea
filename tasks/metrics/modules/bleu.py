"""BLEU on sacrebleu."""

from typing import Any

import datasets
import evaluate
import sacrebleu

from weighbridge.tasks.metrics.rows import bleu


class Bleu(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """Corpus BLEU, BLEU of every sentence, and the counts that the corpus figure comes of."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Corpus BLEU by sacrebleu.",
            citation="Matt Post, A Call for Clarity in Reporting BLEU Scores, 2018.",
            inputs_description=(
                "predictions, references: lists of str. Returns bleu in [0, 100], signature, "
                "per_example and statistics: per row right n-grams of 1 to 4 words, all of them, "
                "and the words of both texts."
            ),
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        tokenize: str = "13a",
        lowercase: bool = False,
    ) -> dict[str, Any]:
        metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase)
        corpus = metric.corpus_score(predictions, [references])
        sentences = list(bleu.sentences(predictions, references, tokenize, lowercase))
        return {
            "bleu": corpus.score,
            "signature": str(metric.get_signature()),
            "per_example": [sentence.score for sentence in sentences],
            "statistics": [bleu.statistics(sentence) for sentence in sentences],
        }
