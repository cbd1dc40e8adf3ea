"""Share of answers that equal their reference."""

import re
import string
from typing import Any

import datasets
import evaluate


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
        pairs = zip(predictions, references, strict=True)
        scores = [
            float(normalized(prediction, **options) == normalized(reference, **options))
            for prediction, reference in pairs
        ]
        return {"exact_match": sum(scores) / len(scores), "per_example": scores}


def normalized(
    text: str,
    *,
    strip: bool = True,
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
    ignore_numbers: bool = False,
    regexes_to_ignore: tuple[str, ...] = (),
) -> str:
    """Return `text` without what does not count."""
    # Patterns first, as in Hugging Face's own exact_match: they are written for the text as it is.
    for pattern in regexes_to_ignore:
        text = re.sub(pattern, "", text)
    dropped = (string.punctuation if ignore_punctuation else "") + (
        string.digits if ignore_numbers else ""
    )
    text = text.translate(str.maketrans("", "", dropped))
    text = text.casefold() if ignore_case else text
    return text.strip() if strip else text
