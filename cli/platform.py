"""Commands about this machine as a platform: up, down, status."""

import json
import time
from typing import TYPE_CHECKING, Any

import click

from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace

if TYPE_CHECKING:
    from weighbridge.rollout.target_status import TargetStatus
    from weighbridge.services.service_status import ServiceStatus


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print the services as JSON; progress goes to stderr."
)
def up(as_json: bool) -> None:
    """Bring up Prefect, MLflow, the deployer, a worker and the gateway, and whatever served before.

    They are kept alive until `weighbridge down`, and listen for this machine alone.
    """
    from weighbridge.cli import terminal
    from weighbridge.services.platform import Platform

    with terminal.live_progress(terminal.stderr if as_json else terminal.console):
        services = Platform(Settings()).up()
    if as_json:
        documents = [service.model_dump(mode="json") for service in services]
        click.echo(json.dumps(documents, indent=2))
        return
    _print_services(services)
    hint = "\nrun a recipe in Prefect's UI, promote a version in MLflow's; see: weighbridge status"
    terminal.console.print(hint, soft_wrap=True)


@click.command()
def down() -> None:
    """Stop the platform and everything that serves here, and leave no process behind.

    What served serves again after `weighbridge up`.
    """
    from weighbridge.cli.terminal import console
    from weighbridge.services.platform import Platform

    with console.status("stopping"):
        stopped = Platform(Settings()).down()
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Say how each service is, and for every target what is to serve, what does, since when."""
    from weighbridge.rollout import target_status
    from weighbridge.services.platform import Platform

    workspace = Workspace()
    services = Platform(workspace.settings).services()
    targets = target_status.status(workspace)
    if as_json:
        document = {
            "services": [service.model_dump(mode="json") for service in services],
            "targets": [target.model_dump(mode="json") for target in targets],
        }
        click.echo(json.dumps(document, indent=2))
        return
    # Targets are shown in any case: `weighbridge run` serves without a platform.
    if any(service.state != "STOPPED" for service in services):
        _print_services(services)
    else:
        click.echo("the platform is down; bring it up with: weighbridge up")
    click.echo()
    if targets:
        _print_targets(targets)
    else:
        click.echo("nothing serves; start with: weighbridge run RECIPE")


def _print_services(services: "list[ServiceStatus]") -> None:
    from weighbridge.cli.terminal import table

    rows = [
        [
            service.name,
            "[green]answers[/green]" if service.answers else f"[red]{service.state.lower()}[/red]",
            _ago(service.since),
            service.address or "—",
        ]
        for service in services
    ]
    table(["service", "health", "up for", "address"], rows)


def _print_targets(targets: "list[TargetStatus]") -> None:
    from rich.markup import escape

    from weighbridge.cli.terminal import console, table

    rows = [
        [
            target.target,
            "[green]answers[/green]" if target.healthy else "[red]down[/red]",
            target.desired_version or "—",
            f"{target.serving.name} {target.serving.version}" if target.serving else "—",
            _ago(target.since),
            target.address,
        ]
        for target in targets
    ]
    table(["target", "health", "desired", "actual", "for", "address"], rows)
    for target in targets:
        for line in _remarks(target):
            console.print(f"{escape(target.target)}: {escape(line)}", soft_wrap=True)


def _remarks(target: "TargetStatus") -> list[str]:
    """Return what else there is to say about a target."""
    lines = []
    if target.phase:
        lines.append(
            f"version {target.trying} is being rolled out: {target.phase}, "
            f"{target.share} % of new requests"
        )
    if target.paused:
        lines.append(f"paused; go on with: weighbridge resume {target.target}")
    return [*lines, *([target.detail] if target.detail else [])]


def _ago(since: float) -> str:
    """Return how long ago that was, in the two largest units."""
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
