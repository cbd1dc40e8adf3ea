"""Commands about engines: list them, install and remove their environments, hold them to the
conformance suite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weighbridge.core.settings import Settings

if TYPE_CHECKING:
    from weighbridge.conformance.base import CheckResult
    from weighbridge.conformance.report import ConformanceReport

COLOURS = {"passed": "green", "failed": "red", "known not to": "dim", "not run": "yellow"}


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def engines(context: click.Context, as_json: bool) -> None:
    """List engines: devices, formats, environment and its size, and what the last check said."""
    if context.invoked_subcommand:
        return
    listed = _listed(Settings())
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    from weighbridge.cli.terminal import table
    from weighbridge.core.formatting import human_size

    rows = [
        [
            row["engine"],
            row["device"],
            ", ".join(row["formats"]),
            row["environment"],
            human_size(row["bytes"]) if row["bytes"] else "",
            row["checked"] or "not checked",
        ]
        for row in listed
    ]
    table(
        ["engine", "device", "formats", "environment", "size", "last check"], rows, right=["size"]
    )


def _listed(settings: Settings) -> list[dict[str, Any]]:
    from weighbridge.conformance.report import kept
    from weighbridge.core import environments, plugins
    from weighbridge.core.pruning import size_on_disk
    from weighbridge.serving.engines.base import engine_class

    listed = []
    for name in plugins.names("engine"):
        engine = engine_class(name)
        for device, lock in engine.locks.items():
            environment, whole = environments.locate(lock, settings.cache)
            report = kept(settings.home, name, device)
            listed.append(
                {
                    "engine": name,
                    "device": device,
                    "formats": sorted(engine.formats),
                    "environment": "installed" if whole else "not installed",
                    "path": str(environment.path),
                    "bytes": size_on_disk(environment.path) if whole else 0,
                    "checked": f"{report.summary()} ({report.version()}, {report.date})"
                    if report
                    else None,
                    "report": report.model_dump() if report else None,
                }
            )
    return listed


@engines.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--device", help="Such as cpu or cuda; open: what this machine has.")
@click.option(
    "--native", is_flag=True, help="Also build the engine's own tools from their pinned source."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def install(names: Sequence[str], device: str | None, native: bool, as_json: bool) -> None:
    """Build the locked environments of the engines NAME…, several at a time."""
    from concurrent.futures import ThreadPoolExecutor

    from weighbridge.cli.terminal import console, live_progress, stderr
    from weighbridge.core import environments

    settings = Settings()
    locks = {name: _lock(name, device) for name in names}
    builds = {name: _native_build(name) for name in names} if native else {}
    # At once: they wait for downloads most of the time.
    with live_progress(stderr if as_json else console), ThreadPoolExecutor(len(locks)) as pool:
        jobs = {
            name: pool.submit(environments.ensure, lock, settings.cache)
            for name, lock in locks.items()
        }
        # Every job is waited for before the first error is raised: one that fails must not break
        # off the others.
        paths = {name: str(job.result().path) for name, job in jobs.items()}
        tools = {name: str(build(settings.cache)) for name, build in builds.items()}
    if as_json:
        installed = [
            {"engine": name, "path": path, "native": tools.get(name)}
            for name, path in paths.items()
        ]
        click.echo(json.dumps(installed, indent=2))
        return
    for name, path in paths.items():
        console.print(f"{name}: environment at {path}", soft_wrap=True)
        if name in tools:
            console.print(f"{name}: native tools at {tools[name]}", soft_wrap=True)


def _lock(name: str, device: str | None) -> Path:
    from weighbridge.core.errors import BadInput
    from weighbridge.serving.engines.base import engine_class

    engine = engine_class(name)
    chosen_device = device or engine(engine.Args(kind=name)).device()
    if chosen_device not in engine.locks:
        remedy = f"known: {', '.join(engine.locks) or 'none'}"
        raise BadInput(f"installing {name}", f"it has no environment for {chosen_device}", remedy)
    return engine.locks[chosen_device]


def _native_build(name: str) -> Callable[[Path], Path]:
    from weighbridge.core.errors import BadInput
    from weighbridge.serving.engines.base import engine_class

    engine = engine_class(name)
    if not engine.builds_natively:
        raise BadInput(
            f"installing {name}",
            "it has no native build",
            f"run: weighbridge engines install {name}",
        )
    return engine.build_native


@engines.command()
@click.argument("names", nargs=-1, metavar="NAME…")
@click.option(
    "--all", "everything", is_flag=True, help="Every engine, on the device that this machine has."
)
@click.option(
    "--set",
    "options",
    multiple=True,
    metavar="OPTION=VALUE",
    help="An option of the engine, by its name.",
)
@click.option(
    "--only", multiple=True, metavar="CHECK", help="Only this check; the result is not kept."
)
@click.option(
    "--docs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write engines.json and engines.md there.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    names: Sequence[str],
    everything: bool,
    options: Sequence[str],
    only: Sequence[str],
    docs: Path | None,
    as_json: bool,
) -> None:
    """Hold the engines NAME… to the conformance suite; exit status 3 where a check fails, 4 where
    none could be run.

    The last result of each is kept, and shown by `weighbridge engines`.
    """
    from weighbridge.core import plugins
    from weighbridge.core.workspace import Workspace
    from weighbridge.serving.engines.base import engine_class

    engine_options, workspace = dict(map(_option, options)), Workspace()
    engine_names = list(names) or (plugins.names("engine") if everything else [])
    if not engine_names and not docs:
        raise click.UsageError("name an engine, or give --all")
    for name in engine_names:
        engine_class(name)  # a misspelt name is refused before any time is spent
    reports = [_check(name, engine_options, only, workspace, as_json) for name in engine_names]
    if as_json:
        click.echo(json.dumps([report.model_dump() for report in reports], indent=2))
    if docs:
        _write_docs(docs, workspace.settings)
    _fail(reports, named=bool(names))


def _option(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise click.UsageError(f"--set {text}: give OPTION=VALUE")
    return name, value


def _check(
    name: str, options: dict[str, str], only: Sequence[str], workspace: Any, as_json: bool
) -> ConformanceReport:
    from weighbridge.cli.terminal import console, live_progress, stderr
    from weighbridge.conformance.runner import check as run

    screen = stderr if as_json else console

    def tell(outcome: CheckResult) -> None:
        colour = COLOURS[outcome.verdict]
        screen.print(f"  [{colour}]{outcome.verdict:<12}[/{colour}] {outcome.title}", end="")
        screen.print(f": {outcome.why}", style="dim", markup=False, soft_wrap=True)

    screen.print(f"[bold]{name}[/bold]")
    with live_progress(screen):
        report = run(name, workspace, options=options, tell=tell, only=only)
    summary = ", ".join(
        filter(None, [report.summary(), report.version(), f"{report.seconds:.0f} s"])
    )
    screen.print(f"[bold]{name}[/bold], {report.device}: {summary}")
    return report


def _write_docs(folder: Path, settings: Settings) -> None:
    from weighbridge.cli.terminal import stderr
    from weighbridge.conformance.matrix import MatrixEntry
    from weighbridge.conformance.runner import document, recorded
    from weighbridge.core.files import replace_text

    results = folder / "engines.json"
    published = json.loads(results.read_text()) if results.exists() else []
    entries = recorded(settings, [MatrixEntry.model_validate(entry) for entry in published])
    documents = [entry.model_dump(mode="json") for entry in entries]
    replace_text(results, json.dumps(documents, indent=1, ensure_ascii=False) + "\n")
    replace_text(folder / "engines.md", document(entries))
    stderr.print(f"written: {results}, {folder / 'engines.md'}", soft_wrap=True)


# With `--all` an engine that cannot be run here is no failure: no machine has every device.
def _fail(reports: Sequence[ConformanceReport], *, named: bool) -> None:
    from weighbridge.core.errors import GateFailed, Unavailable

    failed = {report.engine: report.failed for report in reports if report.failed}
    if failed:
        checks_of = "; ".join(f"{name}: {', '.join(checks)}" for name, checks in failed.items())
        raise GateFailed("checking engines", f"failed are {checks_of}")
    for report in reports if named else ():
        if report.count("not run") == len(report.outcomes):
            raise Unavailable(
                "checking engines",
                f"nothing of {report.engine} could be run: {report.outcomes[0]['why']}",
            )


# Scripts call it by this name; `weighbridge prune` shows these environments too, and weights.
@engines.command(hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(as_json: bool) -> None:
    """Remove environments that no lock of today names and nothing that serves runs in.

    For these and old weights: weighbridge prune.
    """
    from dataclasses import asdict

    from weighbridge.cli.terminal import console
    from weighbridge.core.formatting import human_size
    from weighbridge.core.pruning import prune_environments

    environments = prune_environments(Settings())
    freed = sum(pruned.bytes for pruned in environments if not pruned.kept)
    if as_json:
        click.echo(
            json.dumps(
                {"freed": freed, "environments": [asdict(pruned) for pruned in environments]},
                indent=2,
            )
        )
        return
    for pruned in environments:
        state = f"kept: {pruned.kept}" if pruned.kept else "removed"
        console.print(
            f"{pruned.name}, {human_size(pruned.bytes)}: {state}", soft_wrap=True, markup=False
        )
    console.print(f"{human_size(freed)} freed" if environments else "every environment is needed")
