"""The command that talks to what serves: ask."""

import click

from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace


@click.command()
@click.argument("target")
@click.argument("question")
@click.option(
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Longest answer, in tokens.",
)
def ask(target: str, question: str, max_tokens: int) -> None:
    """Stream one answer from the live endpoint of TARGET."""
    from weighbridge.rollout.target_operations import find_target
    from weighbridge.rollout.target_status import serving_at
    from weighbridge.serving.openai_client import Client

    managed = find_target(target, Workspace())
    # Asked first: a refused connection would say nothing of which target that is.
    serving = serving_at(managed)
    if not serving.healthy:
        raise Unavailable(
            f"asking '{target}'", f"{serving.address} does not answer", "see: weighbridge status"
        )
    place = managed.target
    headers, certificate = place.credentials(), place.certificate()
    client = Client(managed.address_here, headers=headers, certificate=certificate)
    for piece in client.stream([{"role": "user", "content": question}], max_tokens=max_tokens):
        click.echo(piece, nl=False)
    click.echo()
