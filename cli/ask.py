"""Commands to whatever serves: ask."""

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
    from weighbridge.rollout import target_status
    from weighbridge.serving.openai_client import Client

    managed = target_status.known_target(target, Workspace())
    serving = target_status.serving(managed)
    if not serving.healthy:
        raise Unavailable(
            f"asking '{target}'", f"{serving.address} does not answer", "see: weighbridge status"
        )
    client = Client(serving.address, headers=target_status.credentials(managed))
    for piece in client.stream([{"role": "user", "content": question}], max_tokens=max_tokens):
        click.echo(piece, nl=False)
    click.echo()
