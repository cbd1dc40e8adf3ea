"""ROUGE-L of each answer, on Google's rouge-score."""

from collections.abc import Sequence

from rouge_score import rouge_scorer, tokenizers


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    use_stemmer: bool = False,
    tokenizer: str = "rouge",
) -> list[float]:
    """Return each prediction's F-measure of the longest common subsequence of words."""
    # None leaves rouge-score its own tokenizer, which alone knows use_stemmer.
    splitter = Whitespace() if tokenizer == "whitespace" else None
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=use_stemmer, tokenizer=splitter)
    return [
        float(scorer.score(reference, prediction)["rougeL"].fmeasure)
        for prediction, reference in zip(predictions, references, strict=True)
    ]


class Whitespace(tokenizers.Tokenizer):  # type: ignore[misc] # rouge-score has no types
    """Words between white space, as they are; rouge-score's own tokenizer knows a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()
