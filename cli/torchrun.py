"""The command for a fine-tune over several machines: torchrun."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from weighbridge.flows.pools.base import JobDefaults
    from weighbridge.tasks.ranks import RankRequest


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--rendezvous",
    metavar="HOST[:PORT]",
    default="FIRST-MACHINE",
    help="The first machine, by an address that the others reach.",
)
@click.option(
    "--manifest",
    type=click.Choice(["trainjob", "jobset"]),
    help="Print a Kubernetes manifest: Kubeflow's TrainJob, or a JobSet.",
)
@click.option("--image", default="", help="For a manifest: what `weighbridge image control` named.")
@click.option("--gpus", type=click.IntRange(0), help="For a manifest; without it one a process.")
@click.option("--memory", help="For a manifest: memory of a pod, such as 64GiB.")
@click.option("--secret", default="weighbridge", show_default=True, help="Name of the Secret.")
def torchrun(
    recipe: Path,
    rendezvous: str,
    manifest: str | None,
    image: str,
    gpus: int | None,
    memory: str | None,
    secret: str,
) -> None:
    """Print what trains the fine-tune of RECIPE on several machines.

    The same command is run on each of `finetune.nodes` machines, with WEIGHBRIDGE_STORE set: base
    and data are fetched from there by their digests, and what comes out is shared there. The next
    `weighbridge run` goes on with it. Base and data are brought into the store first.
    """
    from weighbridge.core.errors import BadInput
    from weighbridge.tasks.ranks import PORT, torchrun_command

    request = _request(recipe)
    if manifest is None:
        host = rendezvous if ":" in rendezvous else f"{rendezvous}:{PORT}"
        click.echo(shlex.join(torchrun_command(request, host)))
        return
    if not image:
        doing = f"writing a manifest for {recipe}"
        raise BadInput(doing, "no image is named", "give --image: weighbridge image control")
    import yaml

    from weighbridge.services.training_jobs import job_set, train_job

    pods = _pods(request, image, gpus, memory, secret)
    made = train_job(request, pods) if manifest == "trainjob" else job_set(request, pods)
    click.echo(yaml.safe_dump(made, sort_keys=False), nl=False)


def _request(path: Path) -> RankRequest:
    """Return what the ranks are told, its base and data brought into the store that is shared."""
    from weighbridge.configs.load import load
    from weighbridge.core.errors import BadInput
    from weighbridge.core.workspace import Workspace
    from weighbridge.flows.cached_stages import download_step
    from weighbridge.tasks.download import pin
    from weighbridge.tasks.ranks import RankRequest

    recipe, workspace = load(path), Workspace()
    doing = f"preparing the fine-tune of {path}"
    if recipe.finetune == "none":
        raise BadInput(doing, "the recipe has none (`finetune: none`)")
    if workspace.shared is None and recipe.finetune.nodes > 1:
        remedy = "set WEIGHBRIDGE_STORE=s3://bucket/prefix, here and on each of them"
        raise BadInput(doing, "the machines share no store", remedy)
    downloaded = download_step(pin(recipe.download, workspace), recipe, workspace).run(workspace)
    model, data = downloaded.value.model, downloaded.value.data
    return RankRequest(base=model, data=data, args=recipe.finetune)


def _pods(
    request: RankRequest, image: str, gpus: int | None, memory: str | None, secret: str
) -> JobDefaults:
    from weighbridge.flows.pools.base import job_defaults
    from weighbridge.flows.pools.templates import with_environment

    gpus = request.args.processes_per_node if gpus is None else gpus
    doing = "writing a manifest"
    pods = job_defaults(doing, image=image, secret=secret, gpus=gpus, memory=memory)
    return with_environment(pods, os.environ)
