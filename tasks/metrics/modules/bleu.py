"""BLEU on sacrebleu."""

import json
from typing import Any

import datasets
import evaluate
import sacrebleu

from weighbridge.tasks.metrics.rows import bleu

RESAMPLES = 1000


class Bleu(evaluate.Metric):  # type: ignore[misc] # evaluate has no types
    """Corpus BLEU with sacrebleu's own bootstrap interval, and BLEU of every sentence."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Corpus BLEU by sacrebleu, with a 95 % bootstrap interval.",
            citation="Matt Post, A Call for Clarity in Reporting BLEU Scores, 2018.",
            inputs_description=(
                "predictions, references: lists of str. Returns bleu in [0, 100], low, high, "
                "signature and per_example."
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
        corpus = metric.corpus_score(
            predictions, [references], n_bootstrap=RESAMPLES if len(predictions) > 1 else 1
        )
        # sacrebleu keeps its interval in private attributes; its JSON form is the public way to it.
        report = json.loads(
            corpus.format(width=6, signature=str(metric.get_signature()), is_json=True)
        )
        centre = report.get("confidence_mean", corpus.score)
        half = report.get("confidence_var", 0.0)
        return {
            "bleu": corpus.score,
            # The interval lies around the mean of the resamples, which is not quite the score.
            "low": max(0.0, min(corpus.score, centre - half)),
            "high": min(100.0, max(corpus.score, centre + half)),
            "signature": str(metric.get_signature()),
            "per_example": bleu.score(predictions, references, tokenize, lowercase),
        }
