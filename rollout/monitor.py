"""Monitoring: what a live endpoint answers, fails and takes, check by check, and when to go back.

Evidence is carried from check to check, for as long as one version serves. A plain e-process
(sequential_test.py) would be worn down in the months in which nothing is wrong, and take as long to
recover; so each bettor goes on with 1 where less is left (a CUSUM of e-values, an e-detector). At
the bound itself, a false alarm comes after at least 1/ALPHA checks on average, whatever the answers
are like; a version that is well by some margin has none in decades (benchmarks/monitor.py).

Sources:

- J. Shin, A. Ramdas and A. Rinaldo, E-detectors: a nonparametric framework for sequential change
  detection, New England Journal of Statistics in Data Science 2 (2024), arXiv:2203.03532.
- G. Lorden, Procedures for reacting to a change in distribution, Annals of Mathematical Statistics
  42 (1971): the mean time to a false alarm of such a sum is at least 1/alpha.
"""

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.rollout import probe
from weighbridge.rollout.deploy_args import MonitorArgs
from weighbridge.rollout.probe import ProbeQuestion
from weighbridge.rollout.sequential_test import Judgement, Verdict, usual_error_rate, wealth_above
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.scoring import worse_by

Kind = Literal["answers", "errors", "latency"]
MAX_DROP: Final = 0.05
"""How far the score may fall where the recipe sets no floor."""
ALPHA: Final = 0.001
"""Of each kind of evidence; one of 1/ALPHA is proof."""
FLIPS: Final = 0.05
"""Share of answers that the same model may give otherwise."""
IN_A_ROW: Final = 2
"""Failed checks after which the version before serves again: one may have been bad luck."""
EXTRA_ERRORS: Final = 0.02
"""Errors that a version may have more than is usual for it."""
USUAL_REQUESTS: Final = 1000
"""First requests of a version, which tell what errors are usual."""
USUAL_CHECKS: Final = 12
"""First checks with traffic, which tell what latency is usual."""


class MonitorCheck(BaseModel):
    """One check of a target, as it is kept."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="That served.")
    verdict: Verdict
    at: float = Field(description="Unix time.")


class Evidence(BaseModel):
    """What is carried from check to check while one version serves."""

    log_wealth: dict[Kind, list[float]] = Field({}, description="Of each bettor, by kind.")
    failed: float = Field(0.0, description="Of the first requests, as many as `requests`.")
    requests: float = 0.0
    seconds: list[float] = Field([], description="Average latencies of the first checks.")

    def bet(self, kind: Kind, values: Sequence[float], bound: float, lowest: float) -> float:
        """Return the e-value against "the mean of all values is at most `bound`"."""
        before = [max(log, 0.0) for log in self.log_wealth.get(kind, [])]
        wealth = wealth_above(values, bound, lowest, before)
        self.log_wealth[kind] = wealth.log_wealth
        return wealth.e_value


def next_questions(
    questions: Sequence[ProbeQuestion], cursor: int, count: int
) -> list[ProbeQuestion]:
    """Return the questions of one check: all rows in turn, each round in an order of its own.

    Args:
        questions: all there are.
        cursor: how many were asked by earlier checks.
        count: how many are wanted.
    """
    if not questions:
        return []
    rows = len(questions)
    numbers = range(cursor, cursor + min(count, rows))
    return [questions[_order(number // rows, rows)[number % rows]] for number in numbers]


@lru_cache(maxsize=8)
def _order(turn: int, count: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(turn).shuffle(order)
    return tuple(order)


def check(
    url: str,
    measurement: Measurement,
    questions: Sequence[ProbeQuestion],
    floor: float | None,
    *,
    evidence: Evidence | None = None,
    rows: int = 0,
    metric: str = "exact_match",
    metrics: Sequence[MetricArgs] = (),
    max_tokens: int = 128,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Judgement:
    """Judge whether what serves at `url` has fallen below `floor` of `metric`, beyond doubt.

    A few questions can be harder than the whole split. So what is compared with the distance
    between the measured score and the floor is by how much the answers to the same questions got
    worse.

    Args:
        url: of what serves.
        measurement: how it was weighed.
        questions: what is asked now.
        floor: of the metric; None allows a fall of `MAX_DROP`, as does one of a metric that is of
            log-probabilities.
        evidence: of earlier checks; this one's is added.
        rows: that the questions are taken from in turn; 0: as many as are asked.
        metric: label of the one that counts.
        metrics: the recipe's.
        max_tokens: longest answer.
        headers: sent with every request.
        timeout: seconds that one question waits for its answer.
    """
    answers = probe.ask(
        url,
        questions,
        max_tokens=max_tokens,
        sampling=measurement.candidate.engine.sampling(),
        headers=headers,
        timeout=timeout,
    )
    if not answers:
        return Judgement(verdict="inconclusive", why="there are no probe questions")
    if not probe.may_read_texts(metric, metrics):
        # In nats, say: what is seen of the answers is how many changed.
        floor = None
    drops = probe.drops_of(
        answers,
        measurement,
        max_drop=_allowed_drop(measurement.scores.get(metric), floor),
        metrics=metrics,
        metric=metric,
    )
    drops = drops._replace(bound=allowed_mean(drops.bound, rows or len(questions)))
    e_value = (evidence or Evidence()).bet("answers", drops.values, drops.bound, drops.lowest)
    return probe.judgement_of(answers, drops, e_value, ALPHA)


def judge_traffic(figures: Mapping[str, float], evidence: Evidence, args: MonitorArgs) -> Judgement:
    """Judge errors and latency since the last check, each check being one bet.

    Not each request: errors of an outage come together, and a check of it is one event. What is
    usual is what the version did at first.

    Args:
        figures: of the gateway, since the last check.
        evidence: of earlier checks; this one's is added.
        args: what of it a version is taken back for.
    """
    requests, seconds = figures.get("requests", 0.0), figures.get("seconds_average", 0.0)
    found = {
        "errors": _bet_on_errors(figures.get("errors", 0.0), requests, evidence),
        "latency": _bet_on_latency(seconds, requests, evidence, args.max_latency_ratio),
    }
    why = {
        "errors": f"it fails more often than at first: {figures.get('errors', 0.0):.1%} of "
        f"{requests:.0f} requests",
        "latency": f"it is slower than at first: {seconds:.3g} s on average",
    }
    proven = [kind for kind, e_value in found.items() if e_value >= 1 / ALPHA]
    verdict: Verdict = "fail" if any(kind in args.act_on for kind in proven) else "pass"
    return Judgement(
        verdict=verdict,
        why="; ".join(why[kind] for kind in proven),
        evidence={f"evidence_{kind}": e_value for kind, e_value in found.items()},
    )


def both(answers: Judgement, traffic: Judgement, args: MonitorArgs) -> Judgement:
    """Return what a check comes to: a fall of either, where a version is taken back for it."""
    evidence = {**answers.evidence, **traffic.evidence}
    why = "; ".join(part for part in (answers.why, traffic.why) if part)
    verdict = answers.verdict
    if verdict == "fail" and "answers" not in args.act_on:
        verdict = "inconclusive"
    if traffic.verdict == "fail":
        verdict = "fail"
    return Judgement(verdict=verdict, why=why, evidence=evidence)


def _bet_on_errors(share: float, requests: float, evidence: Evidence) -> float:
    if not requests:
        return 1.0
    if evidence.requests < USUAL_REQUESTS:
        evidence.requests += requests
        evidence.failed += share * requests
    bound = min(usual_error_rate(evidence.failed, evidence.requests) + EXTRA_ERRORS, 0.9)
    return evidence.bet("errors", [share], bound, 0.0)


def _bet_on_latency(seconds: float, requests: float, evidence: Evidence, ratio: float) -> float:
    if not requests or not seconds:
        return 1.0
    if len(evidence.seconds) < USUAL_CHECKS:
        evidence.seconds.append(seconds)
        return 1.0
    is_slow = seconds > ratio * statistics.median(evidence.seconds)
    return evidence.bet("latency", [float(is_slow)], 0.5, 0.0)


def input_drift(
    figures: Mapping[str, float], questions: Sequence[ProbeQuestion]
) -> dict[str, float]:
    """Return how long clients' requests are, heads included, and the prompts it was weighed on.

    Bytes, as the gateway reads no prompts. Shown, and never acted on.
    """
    if not questions or not figures.get("request_bytes"):
        return {}
    weighed = statistics.fmean(len(json.dumps(question.prompt)) for question in questions)
    return {"input.request_bytes": figures["request_bytes"], "input.weighed_prompt_bytes": weighed}


def allowed_mean(max_drop: float, rows: int) -> float:
    """Return what the mean drop over so many rows may be where the score may fall by `max_drop`.

    The same rows are asked again and again, so what the answers that a model gives otherwise cost
    of these rows, by chance, stays: two standard errors are added.
    """
    return max_drop + 2 * math.sqrt(FLIPS / rows)


def _allowed_drop(measured: Score | None, floor: float | None) -> float:
    if measured is None or floor is None:
        return MAX_DROP
    # What can be seen of answers is a share of them: a fall in points of BLEU is none, and beside
    # it no share would ever be too large.
    if not all(0 <= score <= 1 for score in (measured.value, floor, *measured.per_example)):
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
