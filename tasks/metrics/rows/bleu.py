"""BLEU of each answer as a sentence, and what corpus BLEU is made of, on sacrebleu."""

from collections.abc import Iterator, Sequence

import sacrebleu
from sacrebleu.metrics.bleu import BLEUScore


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    tokenize: str = "13a",
    lowercase: bool = False,
) -> list[float]:
    """Return each prediction's BLEU, 0 to 100."""
    return [sentence.score for sentence in sentences(predictions, references, tokenize, lowercase)]


def statistics(sentence: BLEUScore) -> list[float]:
    """Return what a sentence adds to a corpus: right n-grams of 1 to 4 words, all of them, and the
    words of both texts.
    """
    lengths = (sentence.sys_len, sentence.ref_len)
    return [float(count) for count in (*sentence.counts, *sentence.totals, *lengths)]


def sentences(
    predictions: Sequence[str], references: Sequence[str], tokenize: str, lowercase: bool
) -> Iterator[BLEUScore]:
    """Yield each prediction's BLEU, with the counts it comes of."""
    # A sentence without one equal 4-gram would score 0; effective_order is what sacrebleu
    # recommends for single sentences.
    metric = sacrebleu.BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)
    for prediction, reference in zip(predictions, references, strict=True):
        yield metric.sentence_score(prediction, [reference])
