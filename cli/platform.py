"""Commands about this machine as a platform: up, down, status."""

import json
import time
from typing import TYPE_CHECKING, Any

import click

from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace

if TYPE_CHECKING:
    from weighbridge.rollout.target_status import TargetStatus
    from weighbridge.services.platform import Component


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print the services as JSON; progress goes to stderr."
)
def up(as_json: bool) -> None:
    """Bring up Prefect, MLflow, the deployer, a worker and the gateway, and whatever served before.

    They are kept alive until `weighbridge down`, and listen for this machine alone.
    """
    from weighbridge.cli import screen
    from weighbridge.services.platform import Platform

    with screen.live(screen.stderr if as_json else screen.console):
        components = Platform(Settings()).up()
    if as_json:
        click.echo(json.dumps([part.model_dump(mode="json") for part in components], indent=2))
        return
    _print_components(components)
    hint = "\nrun a recipe in Prefect's UI, promote a version in MLflow's; see: weighbridge status"
    screen.console.print(hint, soft_wrap=True)


@click.command()
def down() -> None:
    """Stop the platform and everything that serves here, and leave no process behind.

    What served serves again after `weighbridge up`.
    """
    from weighbridge.cli.screen import console
    from weighbridge.services.platform import Platform

    with console.status("stopping"):
        stopped = Platform(Settings()).down()
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Say how each service is, and for every target what should serve, what does, and since when."""
    from weighbridge.rollout import target_status
    from weighbridge.services.platform import Platform

    workspace = Workspace()
    components = Platform(workspace.settings).components()
    statuses = target_status.status(workspace)
    if as_json:
        services = [part.model_dump(mode="json") for part in components]
        click.echo(
            json.dumps(
                {
                    "services": services,
                    "targets": [status.model_dump(mode="json") for status in statuses],
                },
                indent=2,
            )
        )
        return
    if any(part.state != "STOPPED" for part in components):
        _print_components(components)
    else:
        click.echo("the platform is down; bring it up with: weighbridge up")
    click.echo()
    if statuses:
        _print_targets(statuses)
    else:
        click.echo("nothing serves; start with: weighbridge run RECIPE")


def _print_components(components: "list[Component]") -> None:
    from weighbridge.cli.screen import table

    rows = [
        [
            part.name,
            "[green]answers[/green]" if part.answers else f"[red]{part.state.lower()}[/red]",
            _ago(part.since),
            part.address or "—",
        ]
        for part in components
    ]
    table(["service", "health", "up for", "address"], rows)


def _print_targets(statuses: "list[TargetStatus]") -> None:
    from rich.markup import escape

    from weighbridge.cli.screen import console, table

    rows = [
        [
            status.target,
            "[green]answers[/green]" if status.healthy else "[red]down[/red]",
            status.desired_version or "—",
            f"{status.serving.name} {status.serving.version}" if status.serving else "—",
            _ago(status.since),
            status.address,
        ]
        for status in statuses
    ]
    table(["target", "health", "desired", "actual", "for", "address"], rows)
    for status in statuses:
        for line in _remarks(status):
            console.print(f"{escape(status.target)}: {escape(line)}", soft_wrap=True)


def _remarks(status: "TargetStatus") -> list[str]:
    """What else there is to say about a target."""
    lines = []
    if status.phase:
        share = f"{status.share} % of new requests"
        lines.append(f"version {status.trying} is being rolled out: {status.phase}, {share}")
    if status.paused:
        lines.append(f"paused; go on with: weighbridge resume {status.target}")
    return [*lines, *([status.detail] if status.detail else [])]


def _ago(since: float) -> str:
    """How long ago, in the two largest units."""
    if not since:
        return "—"
    seconds = max(0, int(time.time() - since))
    units: list[tuple[str, Any]] = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    parts: list[str] = []
    for unit, size in units:
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size} {unit}")
            seconds %= size
    return " ".join(parts[:2])
