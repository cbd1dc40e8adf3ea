"""Commands about this machine as a platform: up, down, status."""

import json
import time
from typing import TYPE_CHECKING, Any

import click

from weighbridge.core.errors import Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace

if TYPE_CHECKING:
    from weighbridge.rollout.target_status import TargetStatus
    from weighbridge.services.service_status import ServiceStatus


@click.command()
@click.option(
    "--json", "as_json", is_flag=True, help="Print the services as JSON; progress goes to stderr."
)
@click.option(
    "--install", is_flag=True, help="Only write a systemd unit that does this at every boot."
)
def up(as_json: bool, install: bool) -> None:
    """Bring up Prefect, MLflow, the deployer, a worker and the gateway, and whatever served before.

    They are kept alive until `weighbridge down`, and listen for this machine alone. What runs and
    answers nobody is started again.
    """
    from weighbridge.cli import terminal
    from weighbridge.services import systemd
    from weighbridge.services.platform import Platform

    if install:
        path, commands = systemd.install(Settings())
        click.echo(f"wrote {path}; have systemd use it with:\n  " + "\n  ".join(commands))
        return
    with terminal.live_progress(terminal.stderr if as_json else terminal.console):
        services = Platform(Settings()).up()
    if as_json:
        documents = [service.model_dump(mode="json") for service in services]
        click.echo(json.dumps(documents, indent=2))
        return
    _print_services(services)
    hint = (
        "\nrun a recipe in Prefect's UI, promote a version in MLflow's; see: weighbridge status\n"
        f"Prefect's login is in {Settings().home / 'secrets' / 'prefect'}"
    )
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
    """Say how each service is, and for every target what is to serve, what does, since when.

    What others run, such as an MLflow server of yours, is asked at its address. Ends with 4 where a
    target is down, a service of a platform that was ever brought up, or one that others run.
    """
    from weighbridge.core import service_addresses
    from weighbridge.rollout import target_status
    from weighbridge.services.elsewhere import with_services_elsewhere
    from weighbridge.services.platform import Platform
    from weighbridge.services.service_status import with_deployers_trouble

    workspace = Workspace()
    settings = workspace.settings
    # Once: one that hangs takes its time to be given up.
    deployer = service_addresses.deployer_status(settings)
    services = with_services_elsewhere(Platform(settings).services(), settings, deployer)
    services = with_deployers_trouble(services, deployer)
    targets = target_status.status(workspace, deployer=deployer)
    # Without `up` there is no platform that could be down: `weighbridge run` serves without one.
    was_up = service_addresses.read(settings.home) is not None
    expected = [service for service in services if was_up or service.is_elsewhere]
    _show(services, targets, as_json)
    if not all(part.answers for part in expected) or not all(one.healthy for one in targets):
        raise SystemExit(Unavailable.exit_code)


@click.command()
@click.argument("name", default="")
@click.option(
    "--lines", "-n", default=20, show_default=True, type=click.IntRange(0), help="How many."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written; Ctrl-C ends it.")
def logs(name: str, lines: int, follow: bool) -> None:
    """Show the last lines of the log of NAME, a service or a target; of all where none is given."""
    from weighbridge.services.logs import follow as followed
    from weighbridge.services.logs import last_lines, log_files

    files = log_files(Settings(), name)
    for program, path in files.items():
        if len(files) > 1:
            click.echo(f"==> {program}: {path}")
        for line in last_lines(path, lines):
            click.echo(line)
    if follow:
        for program, line in followed(files):
            click.echo(f"{program}: {line}" if len(files) > 1 else line)


def _show(services: "list[ServiceStatus]", targets: "list[TargetStatus]", as_json: bool) -> None:
    if as_json:
        document = {
            "services": [service.model_dump(mode="json") for service in services],
            "targets": [target.model_dump(mode="json") for target in targets],
        }
        click.echo(json.dumps(document, indent=2))
        return
    running = [service for service in services if service.state != "STOPPED"]
    deployer_is_elsewhere = any(one.name == "deployer" and one.is_elsewhere for one in running)
    # Targets are shown in any case: `weighbridge run` serves without a platform. Nor is somebody's
    # MLflow one.
    if deployer_is_elsewhere or not all(service.is_elsewhere for service in running):
        _print_services(services)
    else:
        click.echo("the platform is down; bring it up with: weighbridge up")
        if running:
            _print_services(running)
    click.echo()
    if targets:
        _print_targets(targets, "" if deployer_is_elsewhere else ": weighbridge logs deployer")
    else:
        click.echo("nothing serves; start with: weighbridge run RECIPE")


def _print_services(services: "list[ServiceStatus]") -> None:
    from weighbridge.cli.terminal import sentence, table

    rows = [
        [service.name, _health(service), _ago(service.since), service.address or "—"]
        for service in services
    ]
    table(["service", "health", "up for", "address"], rows)
    for service in services:
        if service.restarted:
            click.echo(f"{service.name}: hung {_ago(service.restarted)} ago, and was started again")
        if service.detail:
            sentence(
                f"{service.name}: it looks after no target, and what serves goes on: "
                f"{service.detail}"
            )
    if others := [service.name for service in services if service.is_elsewhere]:
        sentence(f"not run by this installation, but asked: {', '.join(others)}")


def _health(service: "ServiceStatus") -> str:
    if service.answers:
        return "[green]answers[/green]"
    # What runs may still start, or hang.
    runs = service.state == "RUNNING" or service.is_elsewhere
    state = "does not answer" if runs else service.state.lower()
    return f"[red]{state}[/red]"


def _print_targets(targets: "list[TargetStatus]", deployer_log: str) -> None:
    from weighbridge.cli.terminal import sentence, table

    rows = [
        [
            target.target,
            "[green]answers[/green]" if target.healthy else "[red]down[/red]",
            target.desired_version or "—",
            f"{target.serving.name} {target.serving.version}" if target.serving else "—",
            _ago(target.since),
            _ago(target.running_since),
            target.address or "—",
        ]
        for target in targets
    ]
    columns = ["target", "health", "desired", "actual", "serves for", "up for", "address"]
    table(columns, rows)
    for target in targets:
        for line in _remarks(target, deployer_log):
            sentence(f"{target.target}: {line}")


def _remarks(target: "TargetStatus", deployer_log: str) -> list[str]:
    """Return what else there is to say about a target."""
    lines = []
    if target.phase:
        lines.append(
            f"version {target.trying} is being rolled out: {target.phase}, "
            f"{target.share} % of new requests"
        )
    if target.paused:
        lines.append(f"paused; go on with: weighbridge resume {target.target}")
    if target.restarted:
        times = f", {target.restarts} times in a row" if target.restarts > 1 else ""
        lines.append(f"hung {_ago(target.restarted)} ago, and was started again{times}")
    if target.detail:
        lines.append(target.detail)
    if target.deployer_error:
        lines.append(
            "the deployer, which has an environment of its own, could not look after it "
            f"({_ago(target.deployer_error_at)} ago): {target.deployer_error}. It tries again by "
            f"itself; see its log{deployer_log}"
        )
    return lines


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
