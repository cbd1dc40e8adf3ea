"""Probe questions: does a version that serves answer as it did when it was weighed?

The questions are rows of its own measurement, so nothing has to be written down for them, and each
is compared with the answer to the very same question: how hard the questions are does not matter.
"""

import json
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core import plugins
from weighbridge.core.errors import Unavailable
from weighbridge.core.store import Store
from weighbridge.rollout.sequential_test import SUSPICION, Judgement, evidence_above
from weighbridge.serving.openai_client import Client
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.metrics.base import MetricArgs
from weighbridge.tasks.scoring import score_all

log = logging.getLogger("weighbridge.probe")

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
    """So many of the measured validation rows, evenly spread; none where the predictions are not on
    this machine.
    """
    if measurement.predictions is None:
        return []
    try:
        kept = store.assemble(store.files(measurement.predictions.digest), "jsonl")
    except Unavailable:
        log.warning("the predictions of %s are not on this machine", measurement.candidate.label)
        return []
    lines = (kept.path / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if not row.get("problem")]
    count = min(count, len(rows))
    return [
        ProbeQuestion.model_validate(rows[binding * len(rows) // count]) for binding in range(count)
    ]


def ask(
    url: str,
    questions: Sequence[ProbeQuestion],
    *,
    max_tokens: int = 128,
    headers: Mapping[str, str] | None = None,
    concurrency: int = 2,
    timeout: float = 60.0,
) -> list[ProbeAnswer]:
    """Greedy answers to the questions, in their order; `max_tokens` as weighed, `headers` carry the
    pin.

    After the first question that gets no answer within `timeout` seconds no more are asked.
    """
    client = Client(url, timeout, headers)
    gave_up = threading.Event()

    def answer(question: ProbeQuestion) -> ProbeAnswer:
        if gave_up.is_set():
            return ProbeAnswer(
                question=question, problem="not asked: another question got no answer"
            )
        try:
            return ProbeAnswer(
                question=question, text=client.ask(question.prompt, max_tokens=max_tokens).text
            )
        except Unavailable as exc:
            gave_up.set()
            return ProbeAnswer(question=question, problem=str(exc))

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(answer, questions))


def judge(
    answered: Sequence[ProbeAnswer],
    measurement: Measurement,
    *,
    max_drop: float,
    alpha: float = 0.01,
    metrics: Sequence[MetricArgs] = (),
    metric: str = "",
) -> Judgement:
    """Fail where a drop of more than `max_drop` is proven, with a chance of at most `alpha` to be
    wrong.

    The drop is that of the metric labelled `metric` (empty: the first that can be told), in its own
    unit. `metrics` are the recipe's; empty: those of the measurement, with their default options if
    these give the scores it holds. Where no metric can be told, or the weighed answers were no good
    either, the share of changed answers counts.
    """
    said = [one for one in answered if not one.problem]
    if not answered:
        return Judgement(verdict="inconclusive", why="there are no probe questions")
    losses = _losses(said, measurement, metrics, metric)
    if losses and sum(before for before, _ in losses) > max_drop * len(losses):
        drops = [before - now for before, now in losses]
        judged = _judge(drops, max_drop, -1.0, alpha, "the score fell by")
    else:
        changed = [float(one.text.strip() != one.question.answer.strip()) for one in said]
        judged = _judge(changed, max(CHANGED, max_drop), 0.0, alpha, "of the answers changed")
    if len(said) < len(answered) and judged.verdict != "fail":
        problem = next(one.problem for one in answered if one.problem)
        return judged.model_copy(
            update={"verdict": "error", "why": f"a probe question got no answer: {problem}"}
        )
    return judged


def _judge(
    drops: Sequence[float], bound: float, lowest: float, alpha: float, what: str
) -> Judgement:
    evidence = evidence_above(drops, bound, lowest)
    drop = math.fsum(drops) / max(len(drops), 1)
    figures = {
        "questions": float(len(drops)),
        "drop": drop,
        "max_drop": bound,
        "evidence": evidence,
        "alpha": alpha,
    }
    amount = f"{what} {drop:.3g}" if what.endswith("by") else f"{drop:.0%} {what}"
    why = f"{amount} over {len(drops)} questions, at most {bound:.3g} is allowed"
    if evidence >= 1 / alpha:
        return Judgement(verdict="fail", why=why, evidence=figures)
    if evidence >= SUSPICION or not drops:
        return Judgement(verdict="inconclusive", why=f"{why}: too few to be sure", evidence=figures)
    return Judgement(verdict="pass", why=why, evidence=figures)


def _losses(
    said: Sequence[ProbeAnswer], measurement: Measurement, metrics: Sequence[MetricArgs], label: str
) -> list[tuple[float, float]]:
    """Weighed and present score of every answer, higher is better, within [0, 1]; empty where no
    metric tells.
    """
    for args in _text_metrics(metrics or _defaults(measurement)):
        name = args.label()
        if label not in ("", name) or name not in measurement.scores or not said:
            continue
        before = [one.question.scores.get(name, math.nan) for one in said]
        if not _near(before, _scores(args, [one.question.answer for one in said], said)):
            continue
        pairs = list(zip(before, _scores(args, [one.text for one in said], said), strict=True))
        if all(0 <= score <= 1 for pair in pairs for score in pair):
            return (
                pairs
                if measurement.scores[name].greater_is_better
                else [(1 - a, 1 - b) for a, b in pairs]
            )
    return []


def _defaults(measurement: Measurement) -> list[MetricArgs]:
    """The measurement holds labels, not options: a label that is a plugin's name is that plugin as
    it comes.
    """
    known = plugins.names("metric")
    kinds = [label for label in measurement.scores if label in known and label != "hub"]
    return [plugins.load("metric", kind).Args(kind=kind) for kind in kinds]


def _text_metrics(metrics: Sequence[MetricArgs]) -> list[MetricArgs]:
    return [args for args in metrics if plugins.load("metric", args.kind).uses == "text"]


def _scores(args: MetricArgs, answers: list[str], said: Sequence[ProbeAnswer]) -> list[float]:
    return score_all([args], answers, [one.question.reference for one in said], None)[
        args.label()
    ].per_example


def _near(before: Sequence[float], again: Sequence[float]) -> bool:
    """Whether these are the scores that were taken when it was weighed: not so where the options
    were others.
    """
    return len(before) == len(again) and all(
        abs(a - b) < 1e-6 for a, b in zip(before, again, strict=True)
    )
