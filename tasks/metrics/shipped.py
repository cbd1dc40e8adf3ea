"""The metrics that come with Weighbridge: their arguments, and how their results become scores.

Each is computed by the Hugging Face `evaluate` module of its name in `modules/`.
"""

import importlib
import math
import tempfile
from typing import Any, ClassVar, Literal

from pydantic import Field

from weighbridge.core.field_types import Pattern
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import mean_score, score_of


class ExactMatchArgs(MetricArgs):
    """An answer counts when it equals its reference."""

    bounds: ClassVar[tuple[float, float]] = (0, 1)
    kind: Literal["exact_match"] = "exact_match"
    strip: bool = Field(True, description="White space at both ends does not count.")
    ignore_case: bool = Field(False, description="Upper and lower case are the same.")
    ignore_punctuation: bool = Field(False, description="ASCII punctuation does not count.")
    ignore_numbers: bool = Field(False, description="The digits 0 to 9 do not count.")
    regexes_to_ignore: tuple[Pattern, ...] = Field(
        (), description="What these patterns match does not count."
    )


class JsonFieldsArgs(MetricArgs):
    """How much of a JSON answer is right; an answer that is not JSON is wrong."""

    bounds: ClassVar[tuple[float, float]] = (0, 1)
    kind: Literal["json_fields"] = "json_fields"
    fields: tuple[str, ...] = Field(
        (),
        description="Only these paths, and what lies below them, count: `team`, `customer.name`. "
        "Empty: all.",
    )


class RougeLArgs(MetricArgs):
    """ROUGE-L's F-measure, as rouge-score computes it."""

    bounds: ClassVar[tuple[float, float]] = (0, 1)
    kind: Literal["rouge_l"] = "rouge_l"
    use_stemmer: bool = Field(False, description="Compare English words by their stem.")
    tokenizer: Literal["rouge", "whitespace"] = Field(
        "rouge",
        description="`rouge` sees a-z and 0-9 alone; `whitespace` keeps words of any script as "
        "they are.",
    )


class BleuArgs(MetricArgs):
    """Corpus BLEU, 0 to 100, as sacrebleu computes it."""

    bounds: ClassVar[tuple[float, float]] = (0, 100)
    kind: Literal["bleu"] = "bleu"
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        "13a", description="sacrebleu's tokenizer."
    )
    lowercase: bool = Field(False, description="Upper and lower case are the same.")


class NllArgs(MetricArgs):
    """Negative log-likelihood per reference token; it shows damage that answers don't show yet."""

    bounds: ClassVar[tuple[float, float]] = (0, math.inf)
    kind: Literal["nll"] = "nll"
    report: Literal["nll", "perplexity"] = Field(
        "nll", description="Nats per token, or their exponential."
    )

    def label(self) -> str:
        return self.report


class RowsMetric:
    """Scores rows by the function in `rows/`, as the module of the same name does."""

    module: ClassVar[str]

    def score_rows(self, args: Any, predictions: list[Any], references: list[str]) -> list[float]:
        """Return every row's score."""
        name, _, _ = self.module.partition(":")
        rows = importlib.import_module(f"weighbridge.tasks.metrics.rows.{name}")
        scores: list[float] = rows.score(
            predictions, references, **args.model_dump(exclude={"kind"})
        )
        return scores


class ModuleMetric:
    """What the shipped metrics share: their options go to a module, which scores every row."""

    Args: ClassVar[type[MetricArgs]]
    uses: ClassVar[str] = "text"
    module: ClassVar[str]
    """File in `modules/` and class in it."""

    def score(self, args: Any, predictions: list[Any], references: list[str]) -> Score:
        options = args.model_dump(exclude={"kind"})
        inputs = {"predictions": predictions, "references": references}
        return self.summarize(self.compute({**inputs, **options}))

    def compute(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run the module in memory; nothing is written to the user's cache of `evaluate`."""
        name, _, attribute = self.module.partition(":")
        module = importlib.import_module(f"weighbridge.tasks.metrics.modules.{name}")
        with tempfile.TemporaryDirectory(prefix="weighbridge-metric-") as folder:
            metric = getattr(module, attribute)(keep_in_memory=True, cache_dir=folder)
            result: dict[str, Any] | None = metric.compute(**inputs)
        assert result is not None  # only processes other than the first get None
        return result

    def summarize(self, result: dict[str, Any]) -> Score:
        """Return the score over all rows: where nothing else is said, the mean of theirs."""
        return mean_score(result["per_example"])


class ExactMatch(RowsMetric, ModuleMetric):
    """1 for an answer that equals its reference, else 0."""

    Args = ExactMatchArgs
    module = "exact_match:ExactMatch"


class JsonFields(RowsMetric, ModuleMetric):
    """Right fields among those of answer and reference: a missing and an invented one both cost."""

    Args = JsonFieldsArgs
    module = "json_fields:JsonFields"


class RougeL(RowsMetric, ModuleMetric):
    """ROUGE-L of every answer, and its mean."""

    Args = RougeLArgs
    module = "rouge_l:RougeL"


class Bleu(RowsMetric, ModuleMetric):
    """Corpus BLEU. Its rows hold BLEU of each sentence, whose mean is another figure."""

    Args = BleuArgs
    module = "bleu:Bleu"

    def summarize(self, result: dict[str, Any]) -> Score:
        return score_of(
            result["bleu"], result["per_example"], statistics=result["statistics"], figure="bleu"
        )


class Nll(ModuleMetric):
    """Mean over all reference tokens; rows hold the mean over their own tokens."""

    Args = NllArgs
    uses = "logprobs"
    module = "nll:Nll"

    def score(self, args: NllArgs, predictions: list[Any], references: list[str]) -> Score:
        result = self.compute({"predictions": predictions, "references": references})
        rows = result["per_example"]
        exponential = args.report == "perplexity"
        value = result[args.report]
        return score_of(
            value,
            [raised(row) for row in rows] if exponential else rows,
            greater_is_better=False,
            weights=result["tokens"],
            figure="exponential" if exponential else "mean",
        )


def raised(nats: float) -> float:
    """Return the exponential, as far as a float can hold it: e to the power of 710 is more."""
    return math.exp(min(nats, 700.0))
