"""Whether each answer equals its reference."""

import re
import string
from collections.abc import Sequence
from typing import Any


def score(predictions: Sequence[str], references: Sequence[str], **options: Any) -> list[float]:
    """Return 1 for each prediction that equals its reference after the normalization, else 0."""
    return [
        float(normalized(prediction, **options) == normalized(reference, **options))
        for prediction, reference in zip(predictions, references, strict=True)
    ]


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
