"""Monitoring: the live endpoint's answers against the recipe's floor, and when to go back."""

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.rollout import probe
from weighbridge.rollout.probe import ProbeQuestion
from weighbridge.rollout.sequential_test import Judgement, Verdict
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.scoring import worse_by

MAX_DROP: Final = 0.05
"""How far the score may fall where the recipe sets no floor."""
IN_A_ROW: Final = 2
"""Failed checks after which the version before serves again: one may have been bad luck."""


class MonitorCheck(BaseModel):
    """One check of a target, as it is kept."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="That served.")
    verdict: Verdict
    at: float = Field(description="Unix time.")


def check(
    url: str,
    measurement: Measurement,
    questions: Sequence[ProbeQuestion],
    floor: float | None,
    *,
    metric: str = "exact_match",
    metrics: Sequence[MetricArgs] = (),
    alpha: float = 0.01,
    max_tokens: int = 128,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Judgement:
    """Judge whether what serves at `url` has fallen below `floor` of `metric`, beyond doubt.

    A few questions can be harder than the whole split. So what is compared with the distance
    between the measured score and the floor is by how much the answers to the same questions got
    worse.
    """
    answers = probe.ask(
        url,
        questions,
        max_tokens=max_tokens,
        sampling=measurement.candidate.engine.sampling(),
        headers=headers,
        timeout=timeout,
    )
    max_drop = _allowed_drop(measurement.scores.get(metric), floor)
    return probe.judge(
        answers, measurement, max_drop=max_drop, alpha=alpha, metrics=metrics, metric=metric
    )


def _allowed_drop(measured: Score | None, floor: float | None) -> float:
    if measured is None or floor is None:
        return MAX_DROP
    # A score that was under the floor from the start allows no fall, rather than less than none.
    return max(0.0, worse_by(measured, measured.model_copy(update={"value": floor})))


def has_fallen(checks: Sequence[MonitorCheck], version: str) -> bool:
    """Whether `version` is to be rolled back: its last two checks with a verdict were failures.

    A check without a verdict (nobody answered, too few questions) neither counts nor clears: an
    endpoint that is down is for the reconciler. What another version did earlier, or the same one
    before another took its place, is over.
    """
    verdicts: list[Verdict] = []
    for check in sorted(checks, key=lambda check: check.at, reverse=True):
        if check.version != version:
            break
        if check.verdict in ("pass", "fail"):
            verdicts.append(check.verdict)
    return verdicts[:IN_A_ROW] == ["fail"] * IN_A_ROW
