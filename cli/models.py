"""Commands that read MLflow: models, show."""

import json
import time
from typing import Any

import click

from weighbridge.core.settings import Settings
from weighbridge.tasks.metrics.base import Score


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(name: str | None, as_json: bool) -> None:
    """List the registered models, or the versions of NAME."""
    from weighbridge.cli.terminal import table
    from weighbridge.core.formatting import human_size
    from weighbridge.registry import Registry

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


@click.command()
@click.argument("which", metavar="NAME[@ALIAS|VERSION]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(which: str, as_json: bool) -> None:
    """Show one version: where it comes from, its tags, its measurements.

    Without an alias or a version, the champion.
    """
    from weighbridge.registry import Registry

    name, _, alias_or_version = which.partition("@")
    details = Registry.connect(Settings()).show(name, alias_or_version or "champion")
    if as_json:
        document = {
            **_plain(details.version),
            "lineage": [_plain(version) for version in details.lineage],
            "measurements": {
                label: json.loads(text) for label, text in details.measurements.items()
            },
        }
        click.echo(json.dumps(document, indent=2))
        return
    from weighbridge.cli.terminal import console, table

    version = details.version
    console.print(
        f"[bold]{version.name} {version.version}[/bold]  {version.label}  "
        f"{', '.join(version.aliases)}"
    )
    table(
        ["lineage", "version", "digest"],
        [[ancestor.label, ancestor.version, ancestor.short] for ancestor in details.lineage],
    )
    # What Weighbridge and MLflow note for themselves tells people nothing.
    tags = sorted(
        (key, value)
        for key, value in version.tags.items()
        if not key.startswith(("weighbridge.", "mlflow."))
    )
    table(["tag", "value"], [[key, value] for key, value in tags])
    for label, text in details.measurements.items():
        table([f"measured as {label}", ""], _figures(json.loads(text)), right=[""])


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
        [label, str(Score.model_validate(score))] for label, score in measurement["scores"].items()
    ]
    speed = [
        [f"at concurrency {load['concurrency']}", f"{load['tokens_per_second']:.0f} tokens/s"]
        for load in measurement["load"]
    ]
    return [*scores, *speed]
