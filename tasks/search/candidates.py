"""Search the options of a weighing's candidates on their engines -> the candidates to weigh.

Quality is measured of every artifact and number format, so each of these stays a candidate, with
the options under which the search thinks it fastest. Options that change no number are decided
here, by short runs.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError

from weighbridge.core import machine
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.processes import LeastMemory
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import EngineArgs, engine_class, engine_for
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.measurement import Candidate
from weighbridge.tasks.search import recorded
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.search.args import VARIANT, as_taken
from weighbridge.tasks.search.budget import Budget
from weighbridge.tasks.search.checks import refused
from weighbridge.tasks.search.space import (
    CANDIDATE,
    Branch,
    Setting,
    Space,
    key_of,
    space_of,
    without,
)
from weighbridge.tasks.search.visits import Failure, Phase, Question, Visit, grid_of, write_grid
from weighbridge.tasks.weigh_args import WeighArgs

if TYPE_CHECKING:
    from weighbridge.tasks.search.search import Found

logger = logging.getLogger(__name__)

# 2: noise is learned with the speeds, and settings that tell most get three quarters.
# 3: the winner is weighed, none that fails at times wins, and what was refused is in the record.
VERSION: Final = 3
GRID: Final = "grid.jsonl"
"""File of everything that was tried, on which another search can be replayed."""
SUMMARY: Final = "search.json"


class Searched(BaseModel):
    """What a search has come to."""

    candidates: list[Candidate]
    record: Artifact
    why: str


@dataclass(frozen=True)
class Live:
    """Measures settings on their engines, by what is searched for."""

    candidates: Mapping[str, Candidate]
    rooms: Mapping[str, int]
    """Tokens of context of one answer, by candidate; none where its engine reserves none."""
    data: Artifact
    metrics: EvaluateArgs
    args: WeighArgs
    workspace: Workspace
    aim: Aim = field(default_factory=Aim)

    def args_of(self, setting: Setting) -> EngineArgs:
        """Return the engine's arguments under a setting, with room for the load."""
        candidate = self.candidates[setting[CANDIDATE]]
        options = {name: value for name, value in setting.items() if name != CANDIDATE}
        given = candidate.engine.model_dump(exclude_unset=True)
        args = type(candidate.engine).model_validate({**given, **options})
        engine = engine_for(args)
        if candidate.label not in self.rooms:
            return args
        room = self.rooms[candidate.label]
        model = candidate.variant.artifact.path
        return engine.sized_for(model, room, max(self.args.concurrency))

    def unsearched(self, candidate: Candidate) -> dict[str, Any]:
        """Return the arguments, as JSON, under which its engine would run without any search."""
        try:
            args = self.args_of({CANDIDATE: candidate.label})
            (args, *_) = engine_for(args).tunings(machine.cores())
        # A model that cannot be read, say: the checks tell that of each setting.
        except WeighbridgeError:
            args = candidate.engine
        return args.model_dump(mode="json")

    def __call__(self, question: Question) -> Visit:
        """Start the engine and load it briefly; whatever breaks is a record."""
        search = self.args.search
        assert search is not None
        args = self.args_of(question.setting)
        if engine_for(args).record() is not None:
            return recorded.answer(args, question)
        candidate = self.candidates[question.setting[CANDIDATE]]
        benchmark = self.benchmark(candidate.model_copy(update={"engine": args}))
        setting = dict(question.setting)
        phase: Phase = "start"
        began, started, least = time.monotonic(), 0.0, LeastMemory()
        try:
            with least, benchmark.short_runs(self.aim) as run:
                started, phase = time.monotonic() - began, "load"
                repeats = [run(search.run_seconds) for _ in range(question.rounds)]
            # With the engine's end, which takes its time as well.
            ran = time.monotonic() - began - started
        except WeighbridgeError as exc:
            return Visit(
                setting=setting,
                start_seconds=time.monotonic() - began,
                failure=Failure(
                    phase=phase, why=exc.wrong, memory=least.bytes, arguments=_all_of(args)
                ),
            )
        return Visit(
            setting=setting,
            start_seconds=started,
            run_seconds=ran,
            repeats=repeats,
            levels=self.aim.levels(self.args.concurrency),
            figure=self.aim.figure,
        )

    def benchmark(self, candidate: Candidate) -> CandidateBenchmark:
        return CandidateBenchmark(candidate, self.data, self.metrics, self.args, "", self.workspace)


def searched(
    candidates: Sequence[Candidate],
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    inputs: Sequence[Mapping[str, Any]],
    aim: Aim,
) -> Searched:
    """Return every candidate and number format with the best options that a search has found.

    Args:
        candidates: of the weighing.
        data: the rows, whose prompts are the load.
        metrics: how many rows are used.
        args: engines, load, and the search itself.
        workspace: where the search is kept, so that it goes on after a kill.
        inputs: what measurements of the candidates depend on.
        aim: what is searched for.

    Raises:
        BadInput: no setting can work, or the budget is smaller than one start.
        Unavailable: no setting has worked.
    """
    depends = {"candidates": list(inputs), "search": args.search, "aim": aim}
    labels = [candidate.label for candidate in candidates]
    outcome = workspace.stages.run(
        "weigh.search",
        VERSION,
        Searched,
        {**depends, "labels": labels},
        lambda: _search(candidates, data, metrics, args, workspace, aim, depends),
    )
    logger.info("search of options: %s", outcome.value.why)
    return outcome.value


def _search(
    candidates: Sequence[Candidate],
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    aim: Aim,
    depends: Mapping[str, Any],
) -> Searched:
    # Recipes import this module, and the search brings numpy and Optuna.
    from weighbridge.tasks.search.search import search

    asked = args.search
    assert asked is not None
    live = _live(candidates, data, metrics, args, workspace, aim)
    branches = [_branch(candidate, live) for candidate in candidates]
    whole = space_of(branches, asked.unless)
    for condition in asked.unless:
        if len(space_of(branches, [condition]).settings) == len(space_of(branches).settings):
            logger.warning("search.unless leaves nothing out by %s", json.dumps(condition))
    reasons = refused(whole, live.candidates, live.args_of)
    for number, why in reasons.items():
        logger.info("not tried: %s: %s", json.dumps(whole.settings[number]), why)
    space = without(whole, reasons)
    not_tried = [_refusal(whole.settings[number], why) for number, why in reasons.items()]
    # With the space: trials of another one, which a new release or a lower limit of memory may
    # have made of the same recipe, would not be of its settings.
    name = fingerprint({**depends, "space": space.settings})
    storage = workspace.settings.home / "searches" / f"{name[:16]}.journal"
    budget = Budget(asked.seconds, asked.trials)
    found = search(space, live, budget, seed=asked.seed, storage=storage, name=name)
    chosen = {
        setting_group(space, numbers[0], live): found.best_of(numbers)
        for numbers in _groups(space, live)
    }
    # A record's figure is the one that was recorded.
    figure = next(visit.figure for visit in found.visits if visit.failure is None)
    why = f"by {figure}, {found.why}{_beside_the_record(found, live)}"
    summary = {
        "why": why,
        "maximized": figure,
        "winner": dict(found.setting),
        "losers": found.reasons(),
        "not tried": {key_of(one.setting): one.failure.why for one in not_tried if one.failure},
    }
    return Searched(
        candidates=_chosen(candidates, space, chosen.values(), live),
        record=_record([*grid_of(found.visits), *not_tried], summary, workspace),
        why=why,
    )


def _beside_the_record(found: "Found", live: Live) -> str:
    engine = live.candidates[found.setting[CANDIDATE]].engine
    if engine_for(engine).record() is None:
        return ""
    spent = sum(visit.seconds for visit in found.visits)
    return f"; {recorded.comparison(engine, found.setting, spent)}"


def _live(
    candidates: Sequence[Candidate],
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    aim: Aim,
) -> Live:
    rooms: dict[str, int] = {}
    live = Live({one.label: one for one in candidates}, rooms, data, metrics, args, workspace, aim)
    for candidate in candidates:
        if engine_for(candidate.engine).takes_sizes:
            rooms[candidate.label] = live.benchmark(candidate).room()
    return live


def _branch(candidate: Candidate, live: Live) -> Branch:
    """Return what is tried of a candidate: what the recipe names, or its engine, and never what the
    recipe gives with the engine. The engine's defaults are among it, whatever is named.
    """
    search = live.args.search
    assert search is not None
    engine = engine_for(candidate.engine)
    if engine.record() is not None:
        return recorded.branch(candidate.label, candidate.engine)
    if search.options == "auto":
        named = engine.choices(machine.cores(), max(live.args.concurrency))
    else:
        named = search.options.get(candidate.engine.kind, {})
    given = candidate.engine.model_fields_set
    options = {name: values for name, values in named.items() if name not in given}
    alone = live.unsearched(candidate)
    return Branch(
        candidate.label,
        options,
        default=_defaults(candidate.engine, alone, options),
        beside={**alone, VARIANT: candidate.variant.label},
    )


def _defaults(
    engine: EngineArgs, alone: Setting, options: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return what an engine has by default of the options that are tried, in the recipe's words.

    Number formats that are not named stay out: each would be weighed as a candidate of its own.
    """
    default = {}
    for name, values in options.items():
        same = [value for value in values if _is_taken_as(engine, name, value, alone[name])]
        if same or name not in engine_for(engine).numerics:
            default[name] = same[0] if same else alone[name]
    return default


def _is_taken_as(engine: EngineArgs, name: str, value: Any, other: Any) -> bool:
    """Whether a value, beside what the recipe gives with the engine, is this one in its words."""
    given = engine.model_dump(exclude_unset=True)
    try:
        return bool(as_taken(type(engine), {**given, name: value}, name) == other)
    # The checks tell that of each setting.
    except ValidationError:
        return False


def setting_group(space: Space, number: int, live: Live) -> tuple[tuple[str, Any], ...]:
    """Return what decides a setting's answers: its candidate and the number formats."""
    setting = space.settings[number]
    numerics = engine_class(live.candidates[setting[CANDIDATE]].engine.kind).numerics
    return (
        (CANDIDATE, setting[CANDIDATE]),
        *((name, setting[name]) for name in sorted(numerics & setting.keys())),
    )


def _groups(space: Space, live: Live) -> list[list[int]]:
    """Return the numbers of settings that answer alike, together."""
    groups: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for number in range(len(space.settings)):
        groups.setdefault(setting_group(space, number, live), []).append(number)
    return list(groups.values())


def _chosen(
    candidates: Sequence[Candidate], space: Space, numbers: Iterable[int], live: Live
) -> list[Candidate]:
    """Return the candidates to weigh; one of which no setting can work comes as it is, and fails
    with its own reason.
    """
    groups = [(number, setting_group(space, number, live)) for number in numbers]
    chosen: list[Candidate] = []
    for candidate in candidates:
        own = [(number, group) for number, group in groups if group[0][1] == candidate.label]
        for number, group in own:
            formats = ",".join(f"{name}={value}" for name, value in group[1:])
            label = f"{candidate.label}({formats})" if formats and len(own) > 1 else candidate.label
            engine = live.args_of(space.settings[number])
            chosen.append(candidate.model_copy(update={"label": label, "engine": engine}))
        chosen += [] if own else [candidate]
    return chosen


def _refusal(setting: Setting, why: str) -> Visit:
    """Return the record of a setting that was refused before a start."""
    options = {name: value for name, value in setting.items() if name != CANDIDATE}
    failure = Failure(phase="check", why=why, memory=machine.memory(), arguments=options)
    return Visit(setting=dict(setting), start_seconds=0.0, failure=failure)


def _record(grid: Sequence[Visit], summary: Mapping[str, Any], workspace: Workspace) -> Artifact:
    """Keep what was tried as a grid, and why it ended so."""
    with workspace.store.scratch() as scratch:
        write_grid(scratch / GRID, grid)
        Path(scratch / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
        return workspace.store.add(scratch, "jsonl", {"search": "grid"})


def _all_of(args: EngineArgs) -> dict[str, Any]:
    return args.model_dump(mode="json", exclude_none=True)
