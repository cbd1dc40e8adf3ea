"""Commands that read MLflow: models, show."""

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from weighbridge.cli.references import model_and_version
from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.formatting import figure, human_size
from weighbridge.core.settings import Settings
from weighbridge.serving.load_figures import LoadFigures
from weighbridge.tasks.engine_use import engine_use
from weighbridge.tasks.measurement import Candidate, GpuUse
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.report_chart import title_of
from weighbridge.tasks.slices import by_slice

SPLITS: Final = {"validation": "", "test": ", test split"}

if TYPE_CHECKING:
    from weighbridge.registry import Registry, Version
    from weighbridge.tasks.report_page import Page

REPORT = "report/report.json"
"""Kept with the run of a release."""


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(name: str | None, as_json: bool) -> None:
    """List the registered models, or the versions of NAME."""
    from weighbridge.cli.terminal import sentence, table
    from weighbridge.registry import Registry
    from weighbridge.rollout.champion import alias_warning

    registry = Registry.connect(Settings())
    versions = [
        version
        for model in ([name] if name else registry.names())
        for version in registry.versions(model)
    ]
    if as_json:
        click.echo(json.dumps([_plain(version) for version in versions], indent=2))
        return
    if not versions:
        click.echo("no model is registered; make one with: weighbridge run RECIPE")
        return
    rows = [
        [
            version.name,
            version.version,
            version.label,
            version.parent or "—",
            human_size(version.size),
            " ".join(version.aliases),
            time.strftime("%m-%d %H:%M", time.localtime(version.created)),
        ]
        for version in versions
    ]
    table(
        ["model", "version", "what", "made of", "size", "alias", "registered"], rows, right=["size"]
    )
    for model in dict.fromkeys(version.name for version in versions):
        if warning := alias_warning(registry, model):
            sentence(warning)


@click.command()
@click.argument("name", metavar="NAME[@VERSION]")
@click.argument("version", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, version: str | None, as_json: bool) -> None:
    """Show one version: where it comes from, its measurements, and the report that released it.

    VERSION is a number or an alias, such as `challenger`; without one, the champion.
    """
    from weighbridge.registry import Registry

    model, which = model_and_version(name, version, default="champion")
    registry = Registry.connect(Settings())
    details = registry.show(model, which)
    report = _report_of(registry, details.version)
    if as_json:
        document = {
            **_plain(details.version),
            "lineage": [_plain(version) for version in details.lineage],
            "measurements": {
                label: json.loads(text) for label, text in details.measurements.items()
            },
            "report": report.model_dump(mode="json") if report else None,
        }
        click.echo(json.dumps(document, indent=2))
        return
    from rich.markup import escape

    from weighbridge.cli.terminal import console, sentence, table
    from weighbridge.rollout.champion import RELEASE_RUN

    shown = details.version
    console.print(
        f"[bold]{shown.name} {shown.version}[/bold]  {shown.label}  {', '.join(shown.aliases)}",
        soft_wrap=True,
    )
    table(
        ["lineage", "version", "digest"],
        [[ancestor.label, ancestor.version, ancestor.short] for ancestor in details.lineage],
    )
    # What Weighbridge and MLflow note for themselves tells people nothing.
    tags = sorted(
        (key, value)
        for key, value in shown.tags.items()
        if not key.startswith(("weighbridge.", "mlflow."))
    )
    table(["tag", "value"], [[escape(key), escape(value)] for key, value in tags])
    for label, text in details.measurements.items():
        table([f"measured as {label}", ""], _figures(json.loads(text)), right=[""])
    if report:
        from weighbridge.cli.report import print_whole_report

        console.print()
        print_whole_report(report)
    elif run_id := shown.tags.get(RELEASE_RUN):
        sentence(
            f"its report is an earlier release's: report/report.html of the run {run_id} in MLflow"
        )


def _report_of(registry: "Registry", version: "Version") -> "Page | None":
    """Return the report of the release that packaged a version; None where none did, or where it
    was before reports were kept as data.
    """
    from weighbridge.rollout.champion import RELEASE_RUN
    from weighbridge.tasks.report_page import Page

    run_id = version.tags.get(RELEASE_RUN)
    if not run_id:
        return None
    with contextlib.suppress(Unavailable):
        return Page.model_validate_json(registry.text_of_run(run_id, REPORT))
    return None


def _plain(version: Any) -> dict[str, Any]:
    fields = (
        "name",
        "version",
        "role",
        "label",
        "digest",
        "format",
        "size",
        "parent",
        "base",
        "aliases",
        "created",
    )
    return {**{field: getattr(version, field) for field in fields}, "tags": dict(version.tags)}


def _figures(measurement: dict[str, Any]) -> list[list[str]]:
    scores = [
        [f"{title_of(label)}{split}", str(Score.model_validate(score))]
        for kept, split in (("scores", ""), ("test_scores", SPLITS["test"]))
        for label, score in measurement.get(kept, {}).items()
    ]
    notes = [
        [f"{title_of(label)}: how", note]
        for label, score in measurement.get("scores", {}).items()
        for note in score.get("notes", [])
    ]
    faults = [
        [f"{fault} answers{split}", str(Score.model_validate(score))]
        for kept, split in SPLITS.items()
        for fault, score in measurement.get("faults", {}).get(kept, {}).items()
    ]
    speed = [
        [
            f"at concurrency {load['concurrency']}",
            f"{load['tokens_per_second']:,.0f} tokens/s, "
            f"{figure(load['requests_per_second'], zeros=True)} requests/s",
        ]
        for load in measurement["load"]
    ]
    memory = [["peak memory", human_size(measurement["peak_memory"])]]
    use = [list(fact) for fact in _use(measurement).items()]
    quality = [*scores, *notes, *faults, *_slices(measurement)]
    gaps = [["left out", gap] for gap in measurement.get("left_out", [])]
    own = [*_limits(measurement), *_options(measurement)]
    return [*quality, *speed, *memory, *use, *gaps, *own]


def _use(measurement: dict[str, Any]) -> dict[str, str]:
    load = [LoadFigures.model_validate(level) for level in measurement["load"]]
    gpu = GpuUse.model_validate(measurement["gpu"]) if measurement.get("gpu") else None
    return engine_use(measurement["load_seconds"], load, gpu)


def _slices(measurement: dict[str, Any]) -> list[list[str]]:
    return [
        [f"{title_of(label)} of {name}{split}", str(part)]
        for (kept, split), scores in zip(SPLITS.items(), ("scores", "test_scores"), strict=True)
        if (slices := measurement.get("slices", {}).get(kept))
        for label, score in measurement.get(scores, {}).items()
        for name, part in sorted(by_slice(Score.model_validate(score), slices).items())
    ]


def _limits(measurement: dict[str, Any]) -> list[list[str]]:
    """Return what holds of a request that says nothing else. Older measurements do not tell."""
    context, engine = measurement.get("context"), measurement["candidate"]["engine"]
    rows = [["context per request", f"{context:,} tokens"]] if context else []
    if "temperature" in engine:
        sampling = f"temperature {engine['temperature']:g}, top_p {engine['top_p']:g}"
        rows.append(["sampling by default", sampling])
    return rows


def _options(measurement: dict[str, Any]) -> list[list[str]]:
    # An engine of another package may be gone from this machine, and its figures still be read.
    with contextlib.suppress(ValueError, WeighbridgeError):
        options = Candidate.model_validate(measurement["candidate"]).options
        return [["engine's options", options]] if options else []
    return []
