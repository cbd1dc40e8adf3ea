"""Stage weigh: every candidate on its own engine, over HTTP -> quality, speed, memory, cost.

Candidates are measured one after another, never side by side: they would measure each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field

from weighbridge.core import environments, machine
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.store import sha256_of
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_class, engine_for
from weighbridge.tasks.candidate_benchmark import CandidateBenchmark
from weighbridge.tasks.costs import with_cost
from weighbridge.tasks.evaluate import EvaluateArgs
from weighbridge.tasks.harness import lm_eval
from weighbridge.tasks.measurement import Candidate, Measurement, Variant
from weighbridge.tasks.metrics.base import Checks, load_metric
from weighbridge.tasks.scoring import tokens_compared
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.search.candidates import Searched, searched
from weighbridge.tasks.weigh_args import WeighArgs

# 2: records of version 1 were taken with engines that were tuned and started in another way.
# 3: the token that ends an answer is the one that ends a turn.
# 4: room for the rows and the load alone, one round of tuning, and memory counted whole.
# 5: answers are drawn as they are served.
# 6: requests under way at the end count, time per token is of the request, pieces are not spread.
# 7: scores hold the ids of their rows.
# 8: the answers' tokens are counted.
# 9: processor time, warm-up and graphics cards are recorded.
# 10: faults of answers are counted, and slices kept.
# 11: figures under load are of whole rounds of the streams.
VERSION = 11
logger = logging.getLogger(__name__)

NO_PART: Final = {
    *("engines", "price_per_hour", "hosted_price", "currency"),
    *("repeats", "max_repeats", "repeat_seconds", "search"),
}
"""Settings that change nothing about the measurement of one candidate."""
# Nothing listens there: of the command, only the program is looked at.
DUMMY_HOST: Final = "127.0.0.1"
DUMMY_PORT: Final = 1
NO_AIM: Final = Aim()
"""What a search goes by where nobody says what decides: tokens per second."""
Measure = Callable[[Sequence[Candidate]], list[Measurement]]
"""Measures candidates, elsewhere for instance; their costs are not in it."""


class Weighed(BaseModel):
    """The measurements of every candidate."""

    measurements: list[Measurement]
    search: Artifact | None = Field(
        None, description="What the search of options has tried, as a grid that can be replayed."
    )


def check(args: WeighArgs) -> None:
    """Refuse engines that cannot run on this machine, before anything is made for them.

    Raises:
        Unavailable: a device that one of them needs is missing.
        BadInput: options of one of them cannot work here.
    """
    for engine in args.engines:
        engine_for(engine).check()


def candidates(variants: Sequence[Variant], engines: Sequence[EngineArgs]) -> list[Candidate]:
    """Return every variant with every engine that takes its format.

    Raises:
        BadInput: no engine takes any of them.
    """
    names = _engine_labels(engines)
    pairs = [
        Candidate(label=f"{name}/{variant.label}", variant=variant, engine=args)
        for variant in variants
        for name, args in zip(names, engines, strict=True)
        if variant.artifact.format in engine_class(args.kind).formats
    ]
    if not pairs:
        formats = ", ".join(sorted({variant.artifact.format for variant in variants})) or "nothing"
        kinds = ", ".join(sorted({args.kind for args in engines}))
        raise BadInput(
            "pairing variants with engines",
            f"none of {kinds} serves {formats}",
            "add an engine or variant",
        )
    return pairs


def _engine_labels(engines: Sequence[EngineArgs]) -> list[str]:
    """Return each engine's kind; where one kind comes several times, with its options or else a
    number.
    """
    kinds = [args.kind for args in engines]
    labels: list[str] = []
    for args in engines:
        options = ",".join(f"{name}={value}" for name, value in args.changed().items())
        label = f"{args.kind}({options})" if kinds.count(args.kind) > 1 and options else args.kind
        labels.append(label)
    return [
        label if labels.index(label) == number else f"{label}#{labels[: number + 1].count(label)}"
        for number, label in enumerate(labels)
    ]


def weigh(
    variants: Sequence[Variant],
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    also: Sequence[Candidate] = (),
    aim: Aim = NO_AIM,
    reference: Artifact | None = None,
    measure: Measure | None = None,
) -> Weighed:
    """Measure every candidate; each is kept by itself, and one that fails does not stop the others.

    `also` are candidates made elsewhere, such as the one that serves now; `aim` says what a
    search of options maximizes, and at which load costs are: by default the highest; `reference`
    are the unquantized weights that the variants were made of; `measure` measures all candidates
    in another way than one after another on this machine.

    Raises:
        BadInput: no engine takes any variant.
        Unavailable: not one candidate could be measured.
    """
    named = candidates(variants, args.engines)
    search = _search(named, data, metrics, args, workspace, aim) if args.search else None
    all_candidates = [*(search.candidates if search else named), *also]
    if measure is not None:
        measured = measure(all_candidates)
        return _with_figures([costed(one, args, aim.concurrency) for one in measured], None)
    measurements = []
    for number, candidate in enumerate(all_candidates, start=1):
        logger.info("weighing %s (%d of %d)", candidate.label, number, len(all_candidates))
        weights = None if candidate in also else reference
        measurements.append(
            weigh_one(candidate, data, metrics, args, workspace, aim.concurrency, weights)
        )
    # A search on a record has its result, though nobody comes of it who could be released.
    if search is not None and any(map(_recorded, all_candidates)):
        return Weighed(measurements=measurements, search=search.record)
    return _with_figures(measurements, search.record if search else None)


def _with_figures(measurements: list[Measurement], search: Artifact | None) -> Weighed:
    """Return them. Raises Unavailable where there is not one figure among them."""
    if all(one.failure for one in measurements):
        raise Unavailable(
            "weighing", f"no candidate could be measured; the first: {measurements[0].failure}"
        )
    return Weighed(measurements=measurements, search=search)


def _search(
    named: Sequence[Candidate],
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    aim: Aim,
) -> Searched:
    inputs = [inputs_of(candidate, data, metrics, args, workspace) for candidate in named]
    return searched(named, data, metrics, args, workspace, inputs, aim)


def inputs_of(
    candidate: Candidate,
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    reference: Artifact | None = None,
    where: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return everything a measurement depends on, machine and engine's build included.

    `where` names machines that are not at hand, such as a pool: then their builds are not either,
    but for the locks that they are made of.
    """
    engine = engine_for(candidate.engine)
    compared: dict[str, Any] = {}
    if reference and tokens_compared(metrics.metrics):
        compared["reference"] = reference
    if metrics.lm_eval:
        compared["lm_eval"] = lm_eval.identity(metrics.lm_eval, workspace)
    settings = args.model_dump(exclude=NO_PART)
    return {
        "artifact": candidate.variant.artifact,
        "engine": candidate.engine,
        "build": _build_of(engine, candidate, workspace)
        if where is None or engine.record() is not None
        else _locked_builds(engine, workspace),
        "data": data,
        "metrics": metrics,
        "how": settings,
        "machine": machine.describe() if where is None else where,
        **compared,
    }


def _build_of(engine: Engine, candidate: Candidate, workspace: Workspace) -> str:
    """Return the locked environment and, where the engine's program lies outside of it, its size
    and time.
    """
    if (record := engine.record()) is not None:
        engine.check()
        return sha256_of(record)
    environment, _ = environments.locate(engine.lock(), workspace.settings.cache)
    model = candidate.variant.artifact.path
    program = Path(engine.command(model, DUMMY_HOST, DUMMY_PORT, environment.python)[0])
    if program == environment.python:
        return environment.path.name
    # A program on the PATH has no lock; size and time tell that it was replaced.
    status = program.stat()
    return (
        f"{environment.path.name}, {program.name} of {status.st_size} bytes, {status.st_mtime_ns}"
    )


def _locked_builds(engine: Engine, workspace: Workspace) -> dict[str, str]:
    """Return the environments that it may have elsewhere, by device: which one is seen there."""
    cache = workspace.settings.cache
    return {
        device: environments.locate(lock, cache)[0].path.name
        for device, lock in engine.locks.items()
    }


def weigh_one(
    candidate: Candidate,
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    concurrency: int | None = None,
    reference: Artifact | None = None,
) -> Measurement:
    """Measure one candidate, or take its earlier measurement; a failure is a measurement too.

    Its costs are those at `concurrency`, by default at the highest; `reference` are the unquantized
    weights that it was made of, where they are here.
    """
    measured = measure_one(candidate, data, metrics, args, workspace, reference)
    return costed(measured, args, concurrency)


def costed(measured: Measurement, args: WeighArgs, concurrency: int | None) -> Measurement:
    """Return a measurement with its costs at `concurrency`, by default at the highest."""
    # It says itself what it ran on where that is another machine.
    device = measured.machine.get("device") or engine_for(measured.candidate.engine).device()
    return with_cost(measured, args, device, concurrency)


def measure_one(
    candidate: Candidate,
    data: Artifact,
    metrics: EvaluateArgs,
    args: WeighArgs,
    workspace: Workspace,
    reference: Artifact | None,
) -> Measurement:
    """Measure one candidate, as `weigh_one`, without its costs."""
    if record := _recorded(candidate):
        return failed(candidate, f"it answers searches from the record {record}, and nobody else")
    try:
        inputs = inputs_of(candidate, data, metrics, args, workspace, reference)
        build = str(inputs["build"])
        outcome = workspace.stages.run(
            "weigh.candidate",
            VERSION,
            Measurement,
            inputs,
            lambda: CandidateBenchmark(
                candidate, data, metrics, args, build, workspace, reference
            ).measure(),
            keep=lambda measured: is_whole(measured, metrics),
        )
    except WeighbridgeError as exc:
        logger.warning("%s could not be measured: %s", candidate.label, exc)
        return failed(candidate, str(exc))
    logger.info(
        "%s: %s", candidate.label, f"reused, {outcome.why}" if outcome.reused else "measured"
    )
    return named_as(candidate, outcome.value)


def named_as(candidate: Candidate, measured: Measurement) -> Measurement:
    """Return the measurement under this candidate's name, with the options that were tuned.

    A record may be of a variant of the same bytes that went by another one.
    """
    tuned = candidate.model_copy(update={"engine": measured.candidate.engine})
    return measured.model_copy(update={"candidate": tuned})


def _recorded(candidate: Candidate) -> Path | None:
    return engine_for(candidate.engine).record()


def is_whole(measurement: Measurement, metrics: EvaluateArgs) -> bool:
    """Whether nothing is missing that another try may bring: an engine that failed, a judge that
    did not answer, tasks whose data could not be fetched.
    """
    asked = [args.label() for args in metrics.metrics if load_metric(args.kind).uses == "questions"]
    asked.append(lm_eval.LABEL)
    return not measurement.failure and not any(label in measurement.uncounted for label in asked)


def check_metrics(metrics: EvaluateArgs) -> None:
    """Refuse metrics that cannot be taken from here, before anything is made.

    Raises:
        Unavailable: a service that one of them asks is not there.
    """
    for args in metrics.metrics:
        metric = load_metric(args.kind)
        if isinstance(metric, Checks):
            metric.check(args)


def failed(candidate: Candidate, why: str) -> Measurement:
    """Return the measurement of a candidate that could not be measured."""
    return Measurement(
        candidate=candidate,
        scores={},
        predictions=None,
        load=[],
        load_seconds=0.0,
        peak_memory=0,
        machine=machine.describe(),
        failure=why,
    )
