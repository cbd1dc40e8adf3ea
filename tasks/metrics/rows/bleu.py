"""BLEU of each answer as a sentence, on sacrebleu."""

from collections.abc import Sequence

import sacrebleu


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
) -> list[float]:
    """Return each prediction's BLEU, 0 to 100."""
    # A sentence without one equal 4-gram would score 0; effective_order is what sacrebleu
    # recommends for single sentences.
    sentence = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    return [
        sentence.sentence_score(prediction, [reference]).score
        for prediction, reference in zip(predictions, references, strict=True)
    ]
