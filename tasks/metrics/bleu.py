"""Metric `bleu`: n-gram overlap with the references."""

from typing import ClassVar, Literal

from pydantic import Field

from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import compute


class BleuArgs(MetricArgs):
    """Corpus BLEU, 0 to 100, as sacrebleu computes it."""

    kind: Literal["bleu"] = "bleu"
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        "13a", description="sacrebleu's tokenizer."
    )
    lowercase: bool = Field(False, description="Upper and lower case are the same.")


class Bleu:
    """Corpus BLEU. Its rows hold BLEU of each sentence, whose mean is another figure than the
    corpus's.
    """

    Args: ClassVar[type[MetricArgs]] = BleuArgs
    uses: ClassVar[str] = "text"

    def score(self, args: BleuArgs, predictions: list[str], references: list[str]) -> Score:
        from weighbridge.tasks.metrics.modules import bleu

        options = args.model_dump(exclude={"kind"})
        result = compute(bleu.Bleu, predictions=predictions, references=references, **options)
        return Score(
            value=result["bleu"], **{key: result[key] for key in ("low", "high", "per_example")}
        )
