"""Stage evaluate: base against fine-tuned, on rows that neither was trained on."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from weighbridge.core import progress
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, GateFailed
from weighbridge.core.machine import let_waiting_threads_sleep
from weighbridge.core.plugins import PluginArgs
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.answer_args import AnswerArgs
from weighbridge.tasks.answer_end import tokens_that_stop
from weighbridge.tasks.data import Row, Split, content
from weighbridge.tasks.encoding import encode, load_tokenizer, mean_tokens
from weighbridge.tasks.evaluation_rows import evaluation_rows
from weighbridge.tasks.harness.args import HarnessArgs
from weighbridge.tasks.metrics.base import MetricArgs, Score
from weighbridge.tasks.metrics.shipped import ExactMatchArgs, NllArgs
from weighbridge.tasks.scoring import needs_logprobs, of_one_model, score_rows, worse_by

# 3: scores hold the ids of their rows.
# 4: the answers' tokens are counted.
VERSION: Final = 4
Advance = Callable[[int], None]
"""Takes the rows done since the last call."""
logger = logging.getLogger(__name__)


class EvaluateArgs(BaseModel):
    """What is measured, and what must not get worse by fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metrics: list[Annotated[SerializeAsAny[MetricArgs], PluginArgs("metric")]] = Field(
        default_factory=lambda: [ExactMatchArgs(), NllArgs()],
        min_length=1,
        description="Each with its `kind`.",
    )
    gate: str = Field(
        "", description="Label of the metric that must not get worse; empty: the first one."
    )
    min_gain: float = Field(
        0.0,
        description="How much better than the base the fine-tuned model must at least be on "
        "`gate`, in its unit; "
        "below 0: how much worse it may be.",
    )
    lm_eval: HarnessArgs | None = Field(
        None, description="Tasks of lm-evaluation-harness; they score candidates alone."
    )
    max_new_tokens: int = Field(128, ge=1, description="Most tokens of an answer.")
    answers: AnswerArgs = Field(
        default_factory=AnswerArgs,
        description="What is counted of every candidate's answers beside the metrics.",
    )
    batch_size: int = Field(64, ge=1, description="Rows answered at a time.")
    limit: int | None = Field(
        None,
        ge=1,
        description="Only so many rows of each split: a sample, the same for every model, of all "
        "clusters alike.",
    )

    @model_validator(mode="after")
    def _labels_are_clear(self) -> EvaluateArgs:
        labels = [metric.label() for metric in self.metrics]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two metrics have the label '{twice[0]}'")
        if self.gate and self.gate not in labels:
            raise ValueError(f"gate '{self.gate}' is none of the metrics: {', '.join(labels)}")
        if self.gate_label not in [metric.label() for metric in of_one_model(self.metrics)]:
            raise ValueError(
                f"gate: {self.gate_label} compares candidates with the weights that they are made "
                "of, and says nothing of those; name another metric"
            )
        return self

    @property
    def gate_label(self) -> str:
        return self.gate or self.metrics[0].label()


class Evaluated(BaseModel):
    """Scores by metric label, and every answer."""

    model_config = ConfigDict(frozen=True)

    base: dict[str, Score] = Field(description="On the validation split.")
    finetuned: dict[str, Score] = Field(
        description="On the validation split; without a fine-tune, those of the base."
    )
    test: dict[str, Score] = Field(
        default_factory=dict,
        description="Of the fine-tuned model, on the split no choice is made on.",
    )
    answer_tokens: dict[str, float] = Field(
        default_factory=dict,
        description="Tokens of an answer of the fine-tuned model, mean by split.",
    )
    predictions: Artifact = Field(
        description="validation.jsonl and test.jsonl: id, prompt, reference, answers of both "
        "models, scores by metric."
    )
    seconds: float = 0.0


class Answered(BaseModel):
    """One model on one split."""

    model_config = ConfigDict(frozen=True)

    answers: list[str]
    scores: dict[str, Score]
    answer_tokens: float | None = Field(None, description="Tokens of an answer, mean.")


def evaluate(
    base: Artifact, finetuned: Artifact, data: Artifact, args: EvaluateArgs, workspace: Workspace
) -> Evaluated:
    """Answer the validation rows with both models, the test rows with the fine-tuned one, greedily,
    and score them. Where both are the same model, it answers once.

    Raises:
        BadInput: there are no validation rows, or a model or metric cannot be loaded.
    """
    started = time.monotonic()
    let_waiting_threads_sleep()
    # Rows are read, and too few refused, before torch is imported and a model is loaded.
    validation, test = (evaluation_rows(data, split, args.limit) for split in _SPLITS)
    if not validation:
        raise BadInput(
            "evaluating", "the data hold no validation rows", "give a validation file, or more rows"
        )
    before, after, unseen = _answer_all(base, finetuned, validation, test, args, workspace)
    both = {"base": before, "finetuned": after}
    if before is after:
        del both["base"]
    with workspace.store.scratch() as scratch:
        _write(scratch / "validation.jsonl", validation, both)
        _write(scratch / "test.jsonl", test, {"finetuned": unseen})
        origin = {
            "made_by": "evaluate",
            "base": base.digest,
            "finetuned": finetuned.digest,
            "data": data.digest,
        }
        predictions = workspace.store.add(scratch, "jsonl", origin)
    for label, score in after.scores.items():
        if before is after:
            logger.info("%s: %s", label, score)
        else:
            logger.info("%s: base %s, fine-tuned %s", label, before.scores[label], score)
    return Evaluated(
        base=before.scores,
        finetuned=after.scores,
        test=unseen.scores,
        answer_tokens={
            split: answered.answer_tokens
            for split, answered in zip(_SPLITS, (after, unseen), strict=True)
            if answered.answer_tokens is not None
        },
        predictions=predictions,
        seconds=time.monotonic() - started,
    )


def gate(evaluated: Evaluated, args: EvaluateArgs) -> None:
    """Stop a fine-tune that is worse than its base: the plain difference of the two figures must
    reach `min_gain`.

    Raises:
        GateFailed: it does not; the message holds both figures with their intervals. Or one of
            them is no number, with which nothing can be compared.
    """
    label = args.gate_label
    before, after = evaluated.base[label], evaluated.finetuned[label]
    doing = f"comparing the fine-tuned model with its base on {label}"
    seen = f"fine-tuned {after}, base {before}"
    gain = -worse_by(before, after)
    if math.isnan(gain):
        remedy = "correct the metric, or let another one decide (evaluate.gate)"
        raise GateFailed(doing, f"the metric gives no number: {seen}", remedy)
    if gain < args.min_gain:
        raise GateFailed(
            doing,
            f"{seen}: a gain of {gain:.4g}, at least {args.min_gain:.4g} is asked for",
            "train longer or otherwise (finetune), or change evaluate.gate and evaluate.min_gain",
        )


_SPLITS: Final[tuple[Split, Split]] = ("validation", "test")


def _answer_all(
    base: Artifact,
    finetuned: Artifact,
    validation: Sequence[Row],
    test: Sequence[Row],
    args: EvaluateArgs,
    workspace: Workspace,
) -> tuple[Answered, Answered, Answered]:
    """Return the base's answers on validation, the fine-tuned model's on validation and test."""
    alone = base.digest == finetuned.digest
    total = _passes(args) * ((1 if alone else 2) * len(validation) + len(test))
    done = 0
    with progress.track("evaluating", total, "rows") as update:

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            update(done)

        # Base and fine-tuned model one after the other: only one of them is in memory.
        before = [] if alone else _answer_once(base, [validation], args, workspace, advance)
        after, unseen = _answer_once(finetuned, [validation, test], args, workspace, advance)
    return before[0] if before else after, after, unseen


def _passes(args: EvaluateArgs) -> int:
    """Return how often a model goes through the rows: to answer, and for log-probabilities."""
    return 2 if needs_logprobs(args.metrics) else 1


def _answer_once(
    model: Artifact,
    splits: Sequence[Sequence[Row]],
    args: EvaluateArgs,
    workspace: Workspace,
    advance: Advance,
) -> list[Answered]:
    """Return one model's answers, kept by what they depend on: a base is answered for once, however
    many releases are made of it.
    """
    # The rows themselves and not the artifact they are in: new training rows change no answer.
    inputs = {
        "model": model,
        "rows": fingerprint([content(rows) for rows in splits]),
        "metrics": of_one_model(args.metrics),
        "max_new_tokens": args.max_new_tokens,
    }
    outcome = workspace.stages.run(
        "evaluate.model",
        VERSION,
        list[Answered],
        inputs,
        lambda: _answer(model.path, splits, args, advance),
    )
    if outcome.reused:
        logger.info("answers of model %s reused: %s", model.short, outcome.why)
        advance(_passes(args) * sum(map(len, splits)))
    return outcome.value


def _answer(
    model: Path, splits: Sequence[Sequence[Row]], args: EvaluateArgs, advance: Advance
) -> list[Answered]:
    """Return one model's answers on several splits; it is loaded once."""
    # Imported here: they take torch with them, and recipes import this module for its arguments.
    from weighbridge.tasks import generation, hf_models

    tokenizer = load_tokenizer(model)
    stops = tokens_that_stop(model, tokenizer)
    answered = []
    with hf_models.quiet(), hf_models.threads(model):
        loaded = hf_models.load_model(model)
        for rows in splits:
            if not rows:
                answered.append(Answered(answers=[], scores={}))
                continue
            encoded = encode(tokenizer, rows)
            answers = generation.answers(
                loaded,
                tokenizer,
                [row.prompt for row in encoded],
                stops=stops,
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
                advance=advance,
            )
            logprobs = None
            if needs_logprobs(args.metrics):
                logprobs = generation.logprobs(
                    loaded, encoded, batch_size=args.batch_size, advance=advance
                )
            scores = score_rows(of_one_model(args.metrics), answers, rows, logprobs)
            tokens = mean_tokens(tokenizer, answers)
            answered.append(Answered(answers=answers, scores=scores, answer_tokens=tokens))
    return answered


def _write(path: Path, rows: Sequence[Row], models: dict[str, Answered]) -> None:
    """Write one JSON object a row: `id`, `prompt`, `reference`, and by model its `answer` and
    `scores`.
    """
    with path.open("w", encoding="utf-8") as stream:
        for index, row in enumerate(rows):
            entry: dict[str, Any] = row.model_dump(include={"id", "prompt"}) | {
                "reference": row.reference
            }
            for name, answered in models.items():
                scores = {
                    label: score.per_example[index]
                    for label, score in answered.scores.items()
                    if score.per_example
                }
                entry[name] = {"answer": answered.answers[index], "scores": scores}
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
