"""Hold an engine to the conformance suite: make what it needs, run it, keep the report.

The suite itself is in `conformance/suite.py`, which knows no machine learning library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from weighbridge.conformance import suite
from weighbridge.conformance.base import CheckResult, CheckVerdict, Subject
from weighbridge.conformance.matrix import MatrixEntry, render
from weighbridge.conformance.reference import read
from weighbridge.conformance.reference_model import model_folder
from weighbridge.conformance.report import ConformanceReport, kept, versions
from weighbridge.core import machine, plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput, WeighbridgeError
from weighbridge.core.formatting import one_line
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import Engine, EngineArgs, engine_class

FIRST: Final = (("environment", "its environment is built"), ("prepare", "its artifact is made"))
"""What must be there before the suite can run."""


def check(
    name: str,
    workspace: Workspace,
    *,
    options: Mapping[str, Any] | None = None,
    tell: Callable[[CheckResult], None] = lambda outcome: None,
    only: Collection[str] = (),
) -> ConformanceReport:
    """Run the suite on an engine and keep the report; `options` are the engine's own.

    Raises:
        BadInput: there is no such engine, check or option.
        Unavailable: The model or its reference cannot be made.
    """
    plugin = engine_class(name)
    _refuse_unknown(only)
    engine = plugin(_args(plugin, options or {}))
    started = time.monotonic()
    outcomes = [
        _without_paths(outcome, workspace) for outcome in _outcomes(engine, workspace, tell, only)
    ]
    report = ConformanceReport(
        engine=name,
        device=engine.device(),
        options=dict(options or {}),
        versions=versions(engine),
        machine=machine.describe(),
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(time.monotonic() - started, 1),
        outcomes=outcomes,
    )
    # Of an engine that is not here nothing was seen.
    if not only and outcomes[0]["verdict"] != "not run":
        report.keep(workspace.settings.home)
    return report


def _outcomes(
    engine: Engine, workspace: Workspace, tell: Callable[[CheckResult], None], only: Collection[str]
) -> Iterator[CheckResult]:
    """Yield the results of FIRST, then of the suite; where something lacks, of nothing after it."""
    lacking: str | None = None
    folder = Path()
    artifact: Artifact | None = None

    def install() -> str:
        engine.check()
        return ensure(engine.lock(), workspace.settings.cache).path.name

    def prepare() -> str:
        nonlocal folder, artifact
        folder = model_folder(workspace.settings.cache)
        artifact = servable(engine, folder, workspace)
        return f"{artifact.format}, {artifact.size / 1e6:.1f} MB"

    # Without an environment nothing can be said of the engine; without an artifact it has failed.
    verdicts: tuple[CheckVerdict, CheckVerdict] = ("not run", "failed")
    for (name, title), step, verdict in zip(FIRST, (install, prepare), verdicts, strict=True):
        outcome = (
            _step(name, title, step, verdict)
            if lacking is None
            else CheckResult(name, title, "not run", lacking)
        )
        if outcome.verdict != "passed":
            lacking = lacking or outcome.why
        tell(outcome)
        yield outcome
    if artifact is None:
        for check in suite.CHECKS:
            yield CheckResult(check.name, check.title, "not run", lacking or "")
        return
    logs, cache = workspace.settings.home / "logs" / "engines", workspace.settings.cache
    yield from suite.run(
        Subject(engine.args, artifact.path, read(folder / "reference.json"), cache, logs),
        tell,
        only,
    )


def _step(
    name: str, title: str, step: Callable[[], str], verdict_if_not: CheckVerdict
) -> CheckResult:
    started = time.monotonic()
    verdict: CheckVerdict = "passed"
    try:
        why = step()
    except WeighbridgeError as exc:
        verdict, why = verdict_if_not, one_line(exc)
    return CheckResult(name, title, verdict, why, time.monotonic() - started)


def _without_paths(outcome: CheckResult, workspace: Workspace) -> dict[str, Any]:
    """Return a result without paths of this machine: a report may be published."""
    settings, why = workspace.settings, outcome.why
    for folder, name in (
        (settings.home, "WEIGHBRIDGE_HOME"),
        (settings.cache, "WEIGHBRIDGE_CACHE"),
    ):
        why = why.replace(str(folder), f"${name}")
    return {**asdict(outcome), "why": why, "seconds": round(outcome.seconds, 1)}


def recorded(settings: Settings, published: Sequence[MatrixEntry] = ()) -> list[MatrixEntry]:
    """Return every engine on every device with its last report, or why there is none.

    `published` are those of a document: what they hold of other machines stays until it is seen
    anew.
    """
    published_reports = {(entry.engine, entry.device): entry.report for entry in published}
    entries = []
    for name in plugins.names("engine"):
        engine = engine_class(name)
        this_device = engine(_args(engine, {})).device()
        for device in engine.locks:
            reports = [
                report
                for report in (
                    kept(settings.home, name, device),
                    published_reports.get((name, device)),
                )
                if report
            ]
            report = max(reports, key=lambda report: report.date, default=None)
            missing = (
                "not checked yet"
                if device == this_device
                else f"no {device} device on this machine"
            )
            why = "" if report else engine.capabilities.extras.get("not run", missing)
            entries.append(MatrixEntry(engine=name, device=device, report=report, why=why))
    return entries


def document(entries: Sequence[MatrixEntry]) -> str:
    """Return the matrix of what was recorded, in Markdown."""
    return render(entries, [*FIRST, *((check.name, check.title) for check in suite.CHECKS)])


def _refuse_unknown(only: Collection[str]) -> None:
    names = [check.name for check in suite.CHECKS]
    for name in only:
        if name not in names:
            raise BadInput(
                f"looking for check '{name}'", "there is none", plugins.suggestion(name, names)
            )


def _args(engine: type[Engine], options: Mapping[str, Any]) -> EngineArgs:
    """Return the engine's arguments; what is left open is what this machine would try first."""
    try:
        args = engine.Args.model_validate({"kind": engine.name, **options})
    except ValidationError as exc:
        error = exc.errors()[0]
        option = ".".join(map(str, error["loc"]))
        option_names = [field for field in engine.Args.model_fields if field != "kind"]
        raise BadInput(
            f"reading the options of {engine.name}",
            f"{option}: {error['msg']}",
            plugins.suggestion(option, option_names),
        ) from exc
    tunings = engine(args).tunings(machine.cores())
    return tunings[0] if tunings else args


def servable(engine: Engine, folder: Path, workspace: Workspace) -> Artifact:
    """Return the model in a format that the engine takes, made by the optimizer that changes it
    least.

    Raises:
        BadInput: No optimizer makes any.
        Unavailable: The optimizer cannot be run.
    """
    from weighbridge.tasks.optimize import OptimizeArgs, optimize
    from weighbridge.tasks.optimizers.base import load_optimizer

    # `none` is the first of them: what an engine takes as it is, is not converted.
    for kind in plugins.names("optimizer"):
        optimizer = load_optimizer(kind)
        faithful = optimizer.faithful
        if faithful is not None and optimizer.format in engine.formats:
            # Copied, since the folder is the cache's and serves other engines' checks.
            model = workspace.store.add(
                folder / "model", "safetensors", {"uri": "conformance"}, adopt=False
            )
            data = workspace.store.add(
                folder / "data", "jsonl", {"uri": "conformance"}, adopt=False
            )
            args = OptimizeArgs.model_validate({"variants": [{"kind": kind, **faithful}]})
            return optimize(model, data, args, workspace).variants[0].artifact
    formats = ", ".join(sorted(engine.formats))
    raise BadInput(
        f"preparing a model for {engine.name}", f"no optimizer makes {formats} without loss"
    )
