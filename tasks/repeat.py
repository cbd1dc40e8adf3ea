"""Stage repeat: the finalists in speed run again, in blocks beside each other -> repeats, noise.

The larger of two single runs is often the luckier one: runs of one candidate spread by 7 %. So
those that may win run again, each time in a fresh process, in blocks of shuffled order: what the
machine does meanwhile meets all of them alike. Where single runs turn out to differ more than that,
by the first few blocks, those that were left out for too little begin anew with the others. One of
them, the champion where there is one, runs twice in every block: where its two labels differ, or
where the machine became faster or slower, nothing is believed of speeds
(tasks/statistics/repeats.py).
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from pydantic import BaseModel

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.progress import track
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks import weigh
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Measurement, Noise, Repeat
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.select import is_same, stand
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.finalist import to_repeat
from weighbridge.tasks.selection.limits import Limits
from weighbridge.tasks.selection.objective import Objective, figures_at, highest_concurrency
from weighbridge.tasks.selection.replacement import replacement
from weighbridge.tasks.statistics.repeats import USUAL_SPREAD, drift, faster, planned_looks, tied
from weighbridge.tasks.statistics.single_runs import run_spread
from weighbridge.tasks.weigh import Weighed
from weighbridge.tasks.weigh_args import WeighArgs

# 2: whoever may win once it is repeated is repeated, and nobody else.
# 3: figures under load are of whole rounds of the streams.
# 4: the champion runs again where goodputs are compared.
# 5: more are repeated where single runs turn out to differ more than usual.
# 6: a machine held its speed only where its runs exclude a change of a tenth.
VERSION = 6
BLOCK_VERSION = 2
AGAIN: Final = "again"
"""Second label of the one that runs twice in every block."""
logger = logging.getLogger(__name__)


class Repeated(Weighed):
    """The measurements of every candidate, with repeats where speeds are compared."""

    champion: Measurement | None
    noise: Noise | None = None
    failed: bool = False
    """Whether an engine failed meanwhile: then it is tried again by the next run."""


class Block(BaseModel):
    """One run of every finalist, by label."""

    runs: dict[str, LoadFigures]


def is_void(repeated: Repeated) -> bool:
    """Whether nothing could be believed where a champion was to be beaten: the next run tries
    again.
    """
    noise = repeated.noise
    return repeated.champion is not None and noise is not None and not noise.drift.steady


def finalists(
    measurements: Sequence[Measurement],
    reference: Mapping[str, Score],
    champion: Measurement | None,
    args: SelectArgs,
    answer_tokens: Mapping[str, float] | None = None,
    spread: float = USUAL_SPREAD,
) -> list[Measurement]:
    """Return those whose speeds are compared: the champion, and whoever may be chosen once it is
    repeated; of a goodput the champion alone. None where there is nothing to compare.

    `spread` is the standard deviation of the log of a single run.
    """
    standings, refused = stand(measurements, reference, Limits(args, answer_tokens))
    serving = next((one for one in measurements if champion and is_same(one, champion)), champion)
    if serving is not None and serving.failure:
        return []
    within = [
        one for one in measurements if one.candidate.label not in refused and one is not serving
    ]
    if serving is not None:
        # Whoever is shown to be worse is not promoted, however fast it is.
        within = [
            one
            for one in within
            if replacement(serving, one, "validation", args).verdict != "refuted"
        ]
    challengers = to_repeat(within, standings, serving, args, spread)
    if not Objective(args).is_speed:
        # What decides takes many runs and is not repeated; whether the machine holds its speed is
        # seen of the champion alone.
        return [serving] if serving is not None and challengers else []
    chosen = [*([serving] if serving else []), *challengers]
    return chosen if len(chosen) > 1 else []


def repeat(
    measurements: Sequence[Measurement],
    reference: Mapping[str, Score],
    champion: Measurement | None,
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    select: SelectArgs,
    workspace: Workspace,
    attempt: int = 0,
    answer_tokens: Mapping[str, float] | None = None,
) -> Repeated:
    """Repeat the finalists until they are told apart, tied, or the budget is used up.

    Every block is kept by itself, so a run that was killed goes on after its last one.

    Args:
        measurements: of the candidates, each taken once.
        reference: scores of the unquantized model.
        champion: how the version that serves was measured; None where nothing serves.
        data: the rows, whose prompts are the load.
        metrics: how many rows are used.
        args: how many blocks, and how long each run takes.
        select: limits and objective.
        workspace: where blocks are kept.
        attempt: another number measures anew.
        answer_tokens: mean tokens of the unquantized model's answers, by split.
    """

    def field(spread: float) -> list[Measurement]:
        return finalists(measurements, reference, champion, select, answer_tokens, spread)

    found = field(USUAL_SPREAD) if args.repeats and Objective(select).is_paced else []
    if not found:
        return Repeated(measurements=list(measurements), champion=champion)
    level = select.concurrency or highest_concurrency(found)
    assert level is not None, "those within the limits have been measured under load"
    looks = planned_looks(args.repeats, args.max_repeats if champion else args.repeats)
    plan = _Plan(found, level, looks, data, metrics, args, select, workspace, attempt, field)
    blocks, ended, failed = plan.run()
    if plan.is_too_narrow(blocks):
        # Fresh blocks for all of them: who is repeated has been chosen by those before.
        found = plan.wider(blocks)
        plan = replace(plan, finalists=found, field=lambda _: found)
        blocks, ended, failed = plan.run()
    noise = plan.noise(blocks, ended)
    logger.info("the finalists were repeated: %s; %s", noise.ended, noise.drift.why)
    labels = {one.candidate.label for one in found}

    def repeated(one: Measurement) -> Measurement:
        label = one.candidate.label
        if label not in labels:
            return one
        return one.model_copy(update={"repeats": _repeats(blocks, label), "noise": noise})

    return Repeated(
        measurements=[repeated(one) for one in measurements],
        champion=repeated(champion) if champion else None,
        noise=noise,
        failed=failed,
    )


def _repeats(blocks: Sequence[Block], label: str) -> list[Repeat]:
    return [Repeat(block=number, load=block.runs[label]) for number, block in enumerate(blocks)]


def is_decided(
    one: Sequence[float],
    again: Sequence[float],
    others: Sequence[Sequence[float]],
    min_improvement: float,
    looks: tuple[int, ...],
) -> bool:
    """Whether each of the others is faster, not faster, or tied with the first one, and what is
    shown can be believed; with no others, whether the machine held its speed.
    """
    claims = [faster(one, runs, min_improvement, looks=looks).verdict for runs in others]
    open_ones = [runs for runs, claim in zip(others, claims, strict=True) if claim == "undecided"]
    if any(tied(one, runs, looks=looks).verdict != "shown" for runs in open_ones):
        return False
    found = drift(one, again, others, looks=looks)
    if not others:
        return not found.is_open
    # A machine that only seems to drift, by the noise of few blocks, does so no more with many.
    return "shown" not in claims or found.steady


@dataclass
class _Plan:
    """Who runs in every block, how, and after which blocks is looked."""

    finalists: list[Measurement]
    """The first one is what the others are compared with."""
    level: int
    looks: tuple[int, ...]
    data: Artifact
    metrics: EvaluateArgs
    args: WeighArgs
    select: SelectArgs
    workspace: Workspace
    attempt: int
    field: Callable[[float], list[Measurement]]
    """Returns who is repeated where single runs spread by so much."""

    @property
    def reference(self) -> str:
        return self.finalists[0].candidate.label

    @cached_property
    def runners(self) -> dict[str, Measurement]:
        """Return who runs in a block, by label."""
        labelled = {one.candidate.label: one for one in self.finalists}
        return {**labelled, f"{self.reference} {AGAIN}": self.finalists[0]}

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """Return all that a block depends on, but its number."""
        candidates = {
            label: weigh.inputs_of(
                one.candidate, self.data, self.metrics, self.args, self.workspace
            )
            for label, one in self.runners.items()
        }
        return {
            "candidates": candidates,
            "level": self.level,
            "seconds": self.args.repeat_seconds,
            "attempt": self.attempt,
        }

    def run(self) -> tuple[list[Block], str, bool]:
        """Return the blocks, why there are no more, and whether that is a failure."""
        blocks: list[Block] = []
        with track("repeating the finalists", self.looks[-1], "blocks") as done:
            for number in range(self.looks[-1]):
                try:
                    blocks.append(self._block(number))
                except WeighbridgeError as exc:
                    logger.warning("a repeat failed: %s", exc)
                    return blocks, f"a repeat failed: {exc}", True
                done(number + 1)
                if number + 1 == self.looks[0] and self.is_too_narrow(blocks):
                    return blocks, "single runs differ so much that others may be the best", False
                if number + 1 in self.looks and self._decided(blocks):
                    return blocks, f"all is decided after {number + 1} blocks", False
        return blocks, f"the budget of {len(blocks)} blocks is used up", False

    def _block(self, number: int) -> Block:
        inputs = {**self.inputs, "block": number}
        return self.workspace.stages.run(
            "repeat.block", BLOCK_VERSION, Block, inputs, lambda: self._measure(number)
        ).value

    def _measure(self, number: int) -> Block:
        order = list(self.runners)
        random.Random(f"{fingerprint(self.inputs)} {number}").shuffle(order)
        return Block(runs={label: self._run(label, number) for label in order})

    def _run(self, label: str, number: int) -> LoadFigures:
        benchmark = CandidateBenchmark(
            self.runners[label].candidate, self.data, self.metrics, self.args, "", self.workspace
        )
        # Without the single latencies: they are many, and nobody asks a repeat for them.
        return benchmark.repeat(self.level, number).model_copy(update={"ttft": None, "tpot": None})

    def is_too_narrow(self, blocks: Sequence[Block]) -> bool:
        """Whether the first look shows that more candidates may be the best."""
        looked = len(blocks) >= self.looks[0]
        return looked and len(self.wider(blocks)) > len(self.finalists)

    def wider(self, blocks: Sequence[Block]) -> list[Measurement]:
        """Return who may be the best by the spread of single runs that the first look showed."""
        return self.field(self._spread(blocks))

    def _spread(self, blocks: Sequence[Block]) -> float:
        first_look = blocks[: self.looks[0]]
        repeats = [self._speeds(first_look, label) for label in self.runners]
        singles = [
            (Objective(self.select).speed(before), number)
            for number, one in enumerate(self.finalists)
            if (before := figures_at(one, self.level)) is not None
        ]
        return run_spread(repeats, singles)

    def _speeds(self, blocks: Sequence[Block], label: str) -> list[float]:
        objective = Objective(self.select)
        return [objective.speed(block.runs[label]) for block in blocks]

    def _decided(self, blocks: Sequence[Block]) -> bool:
        one, again, *others = self._by_label(blocks)
        return is_decided(one, again, others, self.select.min_improvement, self.looks)

    def _by_label(self, blocks: Sequence[Block]) -> list[list[float]]:
        """Return the figures of the first finalist, of its second label, and of the others."""
        labels = [one.candidate.label for one in self.finalists]
        return [
            self._speeds(blocks, label)
            for label in (labels[0], f"{self.reference} {AGAIN}", *labels[1:])
        ]

    def noise(self, blocks: Sequence[Block], ended: str) -> Noise:
        one, again, *others = self._by_label(blocks)
        return Noise(
            weighing=fingerprint(self.inputs),
            looks=self.looks,
            ended=ended,
            reference=self.reference,
            spread=self._spread(blocks),
            drift=drift(one, again, others, looks=self.looks),
        )
