"""The command that makes room: prune."""

import json
from typing import TYPE_CHECKING, Any

import click

from weighbridge.core.workspace import Workspace

if TYPE_CHECKING:
    from weighbridge.core.pruning import Pruned
    from weighbridge.core.shared_pruning import SharedHolding
    from weighbridge.rollout.pruning import Holding


@click.command()
@click.option("--yes", "for_real", is_flag=True, help="Remove it; else it is only said.")
@click.option(
    "--shared",
    "of_shared",
    is_flag=True,
    help="Of the store that homes share (WEIGHBRIDGE_STORE), and not of this home.",
)
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="With --shared: days since it was written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(for_real: bool, of_shared: bool, days: float, as_json: bool) -> None:
    """Say what takes room, why it stays, and what nothing needs; with --yes, remove the latter.

    Kept are versions that have an alias, serve, can be rolled back to, are in a ledger or belong to
    the last release, with what they were made of, their Bentos and the answers they are probed
    with. A version that is not kept loses its files, and keeps its figures and lineage in MLflow.
    Environments that no lock names and nothing that serves runs in go as well.

    Of the shared store, artifacts that a version of this MLflow needs are kept, and whatever was
    written in the last days: other homes may go on from there.
    """
    if of_shared:
        _prune_shared(days, for_real=for_real, as_json=as_json)
        return
    from weighbridge.core.pruning import prune_environments
    from weighbridge.registry import Registry
    from weighbridge.rollout import pruning

    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    holdings = pruning.holdings(registry, workspace)
    unneeded = [holding for holding in holdings if not holding.why]
    rows = [_plain(holding) for holding in holdings]
    freed = pruning.freed_by(path for holding in unneeded for path in holding.paths)
    if for_real:
        for holding in unneeded:
            pruning.remove(holding, registry, workspace)
    environments = prune_environments(workspace.settings, dry=not for_real)
    rows += [_environment(environment) for environment in environments]
    freed += sum(environment.bytes for environment in environments if not environment.kept)
    if as_json:
        click.echo(json.dumps({"removed": for_real, "freed": freed, "items": rows}, indent=2))
        return
    _show(rows, freed, for_real=for_real)


def _prune_shared(days: float, *, for_real: bool, as_json: bool) -> None:
    from weighbridge.core import shared_pruning
    from weighbridge.core.errors import BadInput
    from weighbridge.registry import Registry
    from weighbridge.rollout.pruning import needed_digests

    workspace = Workspace()
    if workspace.shared is None:
        remedy = "set WEIGHBRIDGE_STORE=s3://bucket/prefix"
        raise BadInput("looking at the shared store", "this home shares none", remedy)
    needed = needed_digests(Registry.connect(workspace.settings), workspace)
    holdings = shared_pruning.shared_holdings(workspace.shared, needed, days)
    freed = shared_pruning.freed_by(holdings)
    if for_real:
        shared_pruning.remove(workspace.shared, holdings)
    rows = [_plain(holding) for holding in holdings]
    if as_json:
        click.echo(json.dumps({"removed": for_real, "freed": freed, "items": rows}, indent=2))
        return
    _show(rows, freed, for_real=for_real, command="weighbridge prune --shared --yes")


def _plain(holding: "Holding | SharedHolding") -> dict[str, Any]:
    return {"what": holding.what, "bytes": holding.bytes, "kept": holding.why or None}


def _environment(environment: "Pruned") -> dict[str, Any]:
    what = f"environment {environment.name}"
    return {"what": what, "bytes": environment.bytes, "kept": environment.kept}


def _show(
    rows: list[dict[str, Any]],
    freed: int,
    *,
    for_real: bool,
    command: str = "weighbridge prune --yes",
) -> None:
    from rich.markup import escape

    from weighbridge.cli.terminal import sentence, table
    from weighbridge.core.formatting import human_size

    gone = "removed" if for_real else "[yellow]not needed[/yellow]"
    cells = [
        [
            escape(row["what"]),
            human_size(row["bytes"]),
            escape(f"kept: {row['kept']}") if row["kept"] else gone,
        ]
        for row in rows
    ]
    if cells:
        table(["what", "size", ""], cells, right=["size"])
        sentence("a file that several of them link to is counted in each, and goes with the last")
    if for_real:
        sentence(f"{human_size(freed)} freed")
    elif freed:
        sentence(f"{human_size(freed)} would be freed by: {command}")
    else:
        sentence("everything is needed")
