"""Probe questions: does a version that serves answer as it did when it was weighed?

The questions are rows of its own measurement, so nothing has to be written down for them, and each
is compared with the answer to the very same question: how hard the questions are does not matter.
"""

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core import plugins
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import read_json_lines
from weighbridge.core.store import Store
from weighbridge.rollout.sequential_test import SUSPICION, Judgement, wealth_above
from weighbridge.serving.openai_client import Client
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import MetricArgs, load_metric
from weighbridge.tasks.scoring import row_scores

logger = logging.getLogger(__name__)

CHANGED: Final = 0.5
"""Share of answers that may differ in their words, where no metric tells which answer is right: on
another number of threads or slots the same model says some things otherwise.
"""


class ProbeQuestion(BaseModel):
    """A row of the measurement."""

    model_config = ConfigDict(frozen=True)

    prompt: str | list[dict[str, str]]
    reference: str
    answer: str = Field(description="What was said when it was weighed.")
    scores: dict[str, float] = Field(description="Of that answer, by metric label.")


class ProbeAnswer(BaseModel):
    """What is said now."""

    model_config = ConfigDict(frozen=True)

    question: ProbeQuestion
    text: str = ""
    problem: str = Field("", description="Why there is no answer; empty where there is one.")


def questions_of(measurement: Measurement, store: Store, count: int) -> list[ProbeQuestion]:
    """Return `count` of the measured validation rows, evenly spread.

    An empty list where the predictions are not on this machine.
    """
    if measurement.predictions is None:
        return []
    try:
        predictions = store.assemble(store.files(measurement.predictions.digest), "jsonl")
    except Unavailable:
        label = measurement.candidate.label
        logger.warning("the predictions of %s are not on this machine", label)
        return []
    kept = read_json_lines(predictions.path / "validation.jsonl")
    # A row that got no answer when it was weighed is nothing to compare with.
    rows = [row for row in kept if not row.get("problem")]
    count = min(count, len(rows))
    return [ProbeQuestion.model_validate(rows[n * len(rows) // count]) for n in range(count)]


def ask(
    url: str,
    questions: Sequence[ProbeQuestion],
    *,
    max_tokens: int = 128,
    sampling: Mapping[str, float] = MappingProxyType({}),
    headers: Mapping[str, str] | None = None,
    concurrency: int = 2,
    timeout: float = 60.0,
) -> list[ProbeAnswer]:
    """Return answers to the questions, in their order.

    After the first question that gets no answer in time no more are asked.

    Args:
        url: base URL, without `/v1`.
        questions: what is asked.
        max_tokens: longest answer, the same as when it was weighed.
        sampling: how they are drawn, as when it was weighed; greedily where it says nothing.
        headers: sent with every request: the pin to a version, an API key.
        concurrency: questions under way at a time.
        timeout: seconds that one question waits for its answer.
    """
    client = Client(url, timeout, headers)
    gave_up = threading.Event()

    def answer(question: ProbeQuestion) -> ProbeAnswer:
        if gave_up.is_set():
            problem = "not asked: another question got no answer"
            return ProbeAnswer(question=question, problem=problem)
        try:
            text = client.ask(question.prompt, max_tokens=max_tokens, **sampling).text
        except Unavailable as exc:
            gave_up.set()
            return ProbeAnswer(question=question, problem=str(exc))
        return ProbeAnswer(question=question, text=text)

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(answer, questions))


class Drops(NamedTuple):
    """By how much each answer is worse than the weighed one."""

    values: list[float]
    """Each within [lowest, 1]."""
    bound: float
    """What their mean may be."""
    lowest: float
    what: str
    """What they say, in words."""


def judge(
    answers: Sequence[ProbeAnswer],
    measurement: Measurement,
    *,
    max_drop: float,
    alpha: float = 0.01,
    metrics: Sequence[MetricArgs] = (),
) -> Judgement:
    """Fail where a drop of more than `max_drop` is proven.

    Args:
        answers: what was said now.
        measurement: how the version was weighed.
        max_drop: allowed fall of the score, in the metric's own unit.
        alpha: largest chance to be wrong.
        metrics: as for `drops_of`.
    """
    if not answers:
        return Judgement(verdict="inconclusive", why="there are no probe questions")
    drops = drops_of(answers, measurement, max_drop=max_drop, metrics=metrics)
    evidence = wealth_above(drops.values, drops.bound, drops.lowest).e_value
    return judgement_of(answers, drops, evidence, alpha)


def drops_of(
    answers: Sequence[ProbeAnswer],
    measurement: Measurement,
    *,
    max_drop: float,
    metrics: Sequence[MetricArgs] = (),
    metric: str = "",
) -> Drops:
    """Return by how much the answers that there are got worse.

    Where no metric can be computed, or the weighed answers were no good either, the share of
    changed answers counts.

    Args:
        answers: what was said now.
        measurement: how the version was weighed.
        max_drop: allowed fall of the score, in the metric's own unit.
        metrics: the recipe's; empty: those of the measurement, with their default options if these
            give the scores that it holds.
        metric: label of the one that counts; empty: the first that can be computed.
    """
    answered = [answer for answer in answers if not answer.problem]
    scores = _scores_before_and_now(answered, measurement, metrics, metric)
    # A score that was low cannot fall by more than it was: then only the words can tell.
    if scores and sum(before for before, _ in scores) > max_drop * len(scores):
        drops = [before - now for before, now in scores]
        # A score may rise as far as it may fall; a share of changed answers is never below 0.
        return Drops(drops, max_drop, -1.0, "the score fell by")
    changed = [float(answer.text.strip() != answer.question.answer.strip()) for answer in answered]
    return Drops(changed, max(CHANGED, max_drop), 0.0, "of the answers changed")


def judgement_of(
    answers: Sequence[ProbeAnswer], drops: Drops, evidence: float, alpha: float
) -> Judgement:
    """Judge whether the mean drop is above its bound.

    Args:
        answers: what was said now.
        drops: of those that came.
        evidence: the e-value against "it is not".
        alpha: one of 1/alpha is proof.
    """
    values, what = drops.values, drops.what
    drop = math.fsum(values) / max(len(values), 1)
    figures = {
        "questions": float(len(values)),
        "drop": drop,
        "max_drop": drops.bound,
        "evidence": evidence,
        "alpha": alpha,
    }
    amount = f"{what} {drop:.3g}" if what.endswith("by") else f"{drop:.0%} {what}"
    why = f"{amount} over {len(values)} questions, at most {drops.bound:.3g} is allowed"
    if evidence >= 1 / alpha:
        return Judgement(verdict="fail", why=why, evidence=figures)
    if problem := next((answer.problem for answer in answers if answer.problem), ""):
        why = f"a probe question got no answer: {problem}"
        return Judgement(verdict="error", why=why, evidence=figures)
    if evidence >= SUSPICION or not values:
        return Judgement(verdict="inconclusive", why=f"{why}: too few to be sure", evidence=figures)
    return Judgement(verdict="pass", why=why, evidence=figures)


def may_read_texts(label: str, metrics: Sequence[MetricArgs]) -> bool:
    """Whether the metric of this label may be computed of answers: not where it is known to be of
    log-probabilities.
    """
    kind = next((args.kind for args in metrics if args.label() == label), label)
    return kind not in plugins.names("metric") or load_metric(kind).uses == "text"


def _scores_before_and_now(
    answered: Sequence[ProbeAnswer],
    measurement: Measurement,
    metrics: Sequence[MetricArgs],
    label: str,
) -> list[tuple[float, float]]:
    """Return the weighed and the present score of every answer, higher is better, within [0, 1].

    Empty where no metric can be computed that gives the weighed scores again.
    """
    for args in _text_metrics(metrics or _default_metrics(measurement)):
        name = args.label()
        if label not in ("", name) or name not in measurement.scores or not answered:
            continue
        before = [answer.question.scores.get(name, math.nan) for answer in answered]
        again = _scores(args, [answer.question.answer for answer in answered], answered)
        if not _are_near(before, again):
            continue
        now = _scores(args, [answer.text for answer in answered], answered)
        if not all(0 <= score <= 1 for score in (*before, *now)):
            continue
        if measurement.scores[name].greater_is_better:
            return list(zip(before, now, strict=True))
        return [(1 - old, 1 - new) for old, new in zip(before, now, strict=True)]
    return []


def _default_metrics(measurement: Measurement) -> list[MetricArgs]:
    """Return the measurement's metrics, with default options.

    It holds labels, not options: a label that is a plugin's name is that plugin as it comes. `hub`
    is none: it needs the name of a metric.
    """
    plugin_names = plugins.names("metric")
    kinds = [label for label in measurement.scores if label in plugin_names and label != "hub"]
    return [load_metric(kind).Args(kind=kind) for kind in kinds]


def _text_metrics(metrics: Sequence[MetricArgs]) -> list[MetricArgs]:
    # Any other wants log-probabilities, and the answers are texts.
    return [args for args in metrics if load_metric(args.kind).uses == "text"]


def _scores(args: MetricArgs, texts: list[str], answered: Sequence[ProbeAnswer]) -> list[float]:
    references = [answer.question.reference for answer in answered]
    return row_scores(args, texts, references)


def _are_near(before: Sequence[float], again: Sequence[float]) -> bool:
    """Whether these are the scores that were taken when it was weighed.

    They are not where the metric had other options then.
    """
    # Computed twice by the same code: only rounding may differ.
    return len(before) == len(again) and all(
        abs(a - b) < 1e-6 for a, b in zip(before, again, strict=True)
    )
