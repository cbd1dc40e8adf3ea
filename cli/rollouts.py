"""Commands about what serves where, and what served: promote, rollback, pause, resume, abort,
history.
"""

import json
import time
from typing import TYPE_CHECKING

import click

from weighbridge.cli.references import model_and_version
from weighbridge.core.formatting import one_line
from weighbridge.core.workspace import Workspace

if TYPE_CHECKING:
    from weighbridge.deployer.promotion import Promotion
    from weighbridge.registry.ledger import RolloutRecord
    from weighbridge.rollout.operator_commands import Command

_no_wait = click.option("--no-wait", is_flag=True, help="Return at once; see: weighbridge status.")


@click.command()
@click.argument("name", metavar="NAME[@VERSION]")
@click.argument("version", required=False)
@click.option(
    "--now", is_flag=True, help="Skip the steps: all traffic to it as soon as it has answered."
)
@_no_wait
def promote(name: str, version: str | None, now: bool, no_wait: bool) -> None:
    """Let VERSION of the model NAME be its champion, and wait until it serves.

    The same as moving the alias `champion` in MLflow. VERSION is a number or an alias, such as
    `challenger`. Ends with 3 when the version does not hold: what served before goes on serving
    then.
    """
    from weighbridge.deployer.promotion import promote as move

    model, which = model_and_version(name, version)
    _follow(move(model, which, Workspace()), no_wait=no_wait, now=now)


@click.command()
@click.argument("target")
@_no_wait
def rollback(target: str, no_wait: bool) -> None:
    """Let the version before serve at TARGET again; while a version is being rolled out, take that
    back.

    It moves the alias `champion` back. The last versions are kept whole: nothing is built or
    fetched.
    """
    from weighbridge.deployer.promotion import rollback as move

    _follow(move(target, Workspace()), no_wait=no_wait, now=False)


@click.command()
@click.argument("target")
def pause(target: str) -> None:
    """Hold the rollout at TARGET where it is, and let none begin."""
    _command(target, "pause")


@click.command()
@click.argument("target")
def resume(target: str) -> None:
    """Let the rollout at TARGET go on, or the next one begin."""
    _command(target, "resume")


@click.command()
@click.argument("target")
def abort(target: str) -> None:
    """Roll back the rollout at TARGET: what served before goes on serving.

    The alias stays where it is.
    """
    _command(target, "abort")


@click.command()
@click.argument("target")
@click.option(
    "--limit", default=20, show_default=True, type=click.IntRange(1), help="How many, newest first."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every line of the ledger.")
def history(target: str, limit: int, as_json: bool) -> None:
    """List the rollouts at TARGET, newest first: version, what asked for it, what became of it.

    One line each; engines that hung and were started again are listed too.
    """
    from weighbridge.deployer.promotion import history as read

    rollouts = read(target, Workspace(), limit)
    if as_json:
        click.echo(json.dumps([rollout.model_dump(mode="json") for rollout in rollouts], indent=2))
        return
    if not rollouts:
        click.echo(f"nothing was ever rolled out to {target}")
        return
    from weighbridge.cli.terminal import table

    right = ["took", "requests", "failed"]
    columns = ["when", "version", "before", "asked by", "outcome", *right, "why"]
    table(columns, [_row(rollout) for rollout in rollouts], right=right, one_line=True)


def _row(rollout: "RolloutRecord") -> list[str]:
    colour = (
        "green" if rollout.outcome == "serving" else "yellow" if rollout.ended is None else "red"
    )
    seconds = "—" if rollout.seconds is None else f"{rollout.seconds:.1f} s"
    outcome = f"[{colour}]{rollout.outcome}[/{colour}]"
    version = f"{rollout.name} {rollout.version}"
    # To whoever sent it, a request that was cut off has failed.
    failed = str(rollout.failed + rollout.cut)
    return [
        _when(rollout.began),
        version,
        rollout.previous or "—",
        rollout.trigger,
        outcome,
        seconds,
        str(rollout.requests),
        failed,
        one_line(rollout.detail),
    ]


def _when(at: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(at))


def _command(target: str, command: "Command") -> None:
    from weighbridge.deployer.promotion import give_command

    click.echo(give_command(target, command, Workspace()))


def _follow(promotion: "Promotion", *, no_wait: bool, now: bool) -> None:
    """Say what was promoted, and follow it until it serves."""
    from weighbridge.cli.terminal import console

    version = promotion.version
    click.echo(f"champion of {version.name} is version {version.version}")
    if not promotion.bindings:
        click.echo(f"no target serves {version.name}; start one with: weighbridge run RECIPE")
        return
    if no_wait:
        if not promotion.wake(Workspace()):
            click.echo("no deployer runs: it serves after `weighbridge up`, or without --no-wait")
        return
    with console.status("") as spinner:
        last_shown = [""]

        def show(text: str) -> None:
            spinner.update(text)
            # A spinner shows nothing in a log: there it is a line for each change.
            if not console.is_terminal and text != last_shown[0]:
                click.echo(f"  {text}")
                last_shown[0] = text

        promotion.follow(Workspace(), now=now, on_progress=show)
    seconds = time.time() - promotion.at
    targets = ", ".join(binding.target for binding in promotion.bindings)
    click.echo(f"version {version.version} serves at {targets} after {seconds:.1f} s")
