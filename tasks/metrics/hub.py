"""Metric `hub`: any metric of Hugging Face `evaluate`, by its name on the hub or by a path."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.intervals import score_of

if TYPE_CHECKING:
    from evaluate import EvaluationModule


class HubMetricArgs(MetricArgs):
    """A metric of the Hugging Face hub. Its code is downloaded and run here: name only what you
    trust.
    """

    kind: Literal["hub"] = "hub"
    name: str = Field(
        min_length=1, description="`rouge`, `org/name`, or the path of a metric script."
    )
    config: str | None = Field(
        None, description="Configuration of the metric, where it has several."
    )
    revision: str | None = Field(None, description="Git revision of the metric's code.")
    key: str = Field(
        "", description="Which figure of its result counts: `rougeL`. Empty: the one named like it."
    )
    compute: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="Options of its `compute`."
    )
    each: bool = Field(
        True, description="Score every row by itself too, for the interval and the predictions."
    )
    greater_is_better: bool = True

    def label(self) -> str:
        return self.key or Path(self.name).stem


class HubMetric:
    """Whatever `evaluate.load` finds."""

    Args: ClassVar[type[MetricArgs]] = HubMetricArgs
    uses: ClassVar[str] = "text"

    def check(self, args: HubMetricArgs) -> None:
        """Refuse a metric that is nowhere, hours before it is needed."""
        _load(args)

    def score(self, args: HubMetricArgs, predictions: list[str], references: list[str]) -> Score:
        """Return the figure over all rows.

        Without `each`, its interval is not known, and both ends equal the value.
        """
        module = _load(args)
        overall = _figure(module, args, predictions, references)
        rows = overall if isinstance(overall, list) else []
        if args.each and not rows:
            rows = [
                _single(_figure(module, args, [prediction], [reference]))
                for prediction, reference in zip(predictions, references, strict=True)
            ]
        value = math.fsum(overall) / len(overall) if isinstance(overall, list) else overall
        return score_of(value, rows, greater_is_better=args.greater_is_better)


def _load(args: HubMetricArgs) -> "EvaluationModule":
    import evaluate

    doing = f"loading metric '{args.name}'"
    try:
        return evaluate.load(
            args.name,
            args.config,
            module_type="metric",
            keep_in_memory=True,
            revision=args.revision,
        )
    except ImportError as exc:
        raise Unavailable(doing, one_line(exc), "install what it needs") from exc
    # Before OSError, whose subclass it is: `evaluate` says by it that it found no such metric.
    except FileNotFoundError as exc:
        raise BadInput(
            doing, "there is no such metric, or the hub cannot be reached", "check its name"
        ) from exc
    except (ConnectionError, OSError) as exc:
        raise Unavailable(doing, one_line(exc), "check the network, or HF_ENDPOINT") from exc
    except (ValueError, TypeError) as exc:
        raise BadInput(doing, one_line(exc)) from exc


def _figure(
    module: "EvaluationModule", args: HubMetricArgs, predictions: list[str], references: list[str]
) -> float | list[float]:
    # What it raises is left to whoever calls metrics, and finds the row that it is about.
    result = module.compute(predictions=predictions, references=references, **args.compute)
    figure = _pick(result or {}, args)
    if isinstance(figure, list | tuple):
        return [float(value) for value in figure]
    if figure is None or isinstance(figure, str):
        wrong = f"its result has no figure '{args.label()}'"
        remedy = f"set `key` to one of: {', '.join(result or {})}"
        raise BadInput(f"computing metric '{args.name}'", wrong, remedy)
    return float(figure)


def _pick(result: dict[str, Any], args: HubMetricArgs) -> Any:
    if args.label() in result:
        return result[args.label()]
    return next(iter(result.values())) if not args.key and len(result) == 1 else None


def _single(figure: float | list[float]) -> float:
    return figure[0] if isinstance(figure, list) else figure
