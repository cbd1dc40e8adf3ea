"""Commands about what serves: status, down, ask."""

import json
import time

import click

from core.errors import BadInput, Unavailable
from core.plugins import suggestion
from core.workspace import Workspace


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Say for every target what serves, at which address, and whether it answers."""
    from tasks.deploy import status as serving_status

    served = serving_status(Workspace())
    if as_json:
        click.echo(json.dumps({name: serving.model_dump(mode="json") for name, serving in served.items()}, indent=2))
        return
    if not served:
        click.echo("nothing serves; start with: weighbridge run RECIPE")
        return
    from cli.screen import table

    rows = [
        [
            name,
            "answers" if serving.healthy else f"down: {serving.detail}",
            f"{serving.release.name} v{serving.release.version}" if serving.release else "—",
            serving.address,
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(serving.since)) if serving.since else "—",
        ]
        for name, serving in served.items()
    ]
    table(["target", "health", "serves", "address", "since"], rows)


@click.command()
def down() -> None:
    """Stop everything that serves here and leave no process behind."""
    from tasks.deploy import down as stop_serving

    stopped = stop_serving(Workspace())
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.argument("target")
@click.argument("question")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens.")
def ask(target: str, question: str, max_tokens: int) -> None:
    """Stream one answer from the live endpoint of TARGET."""
    from serving.client import Client
    from tasks.deploy import status as serving_status

    served = serving_status(Workspace())
    if target not in served:
        known = suggestion(target, list(served)) if served else "start one with: weighbridge run RECIPE"
        raise BadInput(f"asking '{target}'", "there is no such target", known)
    serving = served[target]
    if not serving.healthy:
        raise Unavailable(f"asking '{target}'", f"{serving.address} does not answer: {serving.detail}")
    for piece in Client(serving.address).stream([{"role": "user", "content": question}], max_tokens=max_tokens):
        click.echo(piece, nl=False)
    click.echo()
