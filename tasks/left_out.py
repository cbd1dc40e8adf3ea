"""What an engine cannot tell, and what is left out or taken otherwise for that: as sentences."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.candidate_answers import Answers
from weighbridge.tasks.metrics.base import MetricArgs, load_metric


def left_out(
    metrics: Sequence[MetricArgs],
    answers: Collection[Answers],
    load: Sequence[LoadFigures],
    missing: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """Return what of the recipe's wishes this engine does not fulfil.

    Args:
        metrics: That the recipe asks for.
        answers: Of every split.
        load: Figures at every concurrency.
        missing: By metric, why its service did not tell.
    """
    return [
        *_without_logprobs(metrics, answers),
        *_without_distributions(metrics, answers),
        *_without_counts(load),
        *(f"without {label}: {why}" for label, why in missing.items()),
    ]


def _without_logprobs(metrics: Sequence[MetricArgs], answers: Collection[Answers]) -> list[str]:
    asked = [args.label() for args in metrics if load_metric(args.kind).uses == "logprobs"]
    if not asked or any(split.likelihoods.logprobs is not None for split in answers):
        return []
    limit = " and select.max_nll_increase" if "nll" in asked else ""
    return [f"its engine tells no log-probabilities: without {', '.join(asked)}{limit}"]


def _without_distributions(
    metrics: Sequence[MetricArgs], answers: Collection[Answers]
) -> list[str]:
    asked = [args.label() for args in metrics if load_metric(args.kind).uses == "distributions"]
    told = [split.likelihoods for split in answers if split.rows]
    if not asked or any(one.distributions is not None for one in told):
        return []
    why = next((one.untold for one in told), "there are no rows")
    return [f"without {', '.join(asked)}: {why}"]


def _without_counts(load: Sequence[LoadFigures]) -> list[str]:
    if not any(level.uncounted for level in load):
        return []
    return [
        "its engine counts no tokens: tokens per second, time per token and the cost of a token "
        "are of the pieces that it sent"
    ]
