"""The command that writes a target's manifests: render."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace

if TYPE_CHECKING:
    from weighbridge.rollout.deploy_args import DeployArgs
    from weighbridge.serving.targets.base import Release
    from weighbridge.serving.targets.kubernetes.args import KubernetesArgs

ROLE_FILE = "deployer-role.yaml"


@click.command()
@click.argument("target", metavar="TARGET_OR_RECIPE")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the files; one that `render` wrote before is brought up to date.",
)
@click.option(
    "--as",
    "form",
    type=click.Choice(["manifests", "argo-rollouts", "kserve", "skypilot"]),
    default="manifests",
    show_default=True,
    help="What is written: Kubernetes' own objects, or what others take.",
)
@click.option(
    "--version", default="champion", show_default=True, help="Which version; a number or an alias."
)
@click.option(
    "--role",
    "is_role",
    is_flag=True,
    help="Print the Role alone, for `kubectl apply -f -`; a recipe needs no version for it.",
)
def render(target: str, output: Path | None, form: str, version: str, is_role: bool) -> None:
    """Write the manifests of a Kubernetes target to DIR, with a kustomization.yaml.

    TARGET_OR_RECIPE is the name of a target, or a recipe's file whose `deploy.target` is of the
    kind `kubernetes`. The same version and arguments give the same files. Every manifest is checked
    first. Printed is also the Role that Weighbridge needs where it does the rollout itself.
    """
    from weighbridge.serving.targets.kubernetes import exports, rules
    from weighbridge.serving.targets.kubernetes.access import role_manifests
    from weighbridge.serving.targets.kubernetes.files import as_yaml, write_manifests
    from weighbridge.serving.targets.kubernetes.manifests import rolling_manifests

    model, name, deploy = _what_to_render(target, Workspace())
    args = _kubernetes_args(name, deploy)
    role = role_manifests(name, args)
    if is_role:
        rules.check(role, name)
        click.echo(as_yaml(*role, compact=True), nl=False)
        return
    if output is None:
        raise click.UsageError("say where to write the files, -o DIR; or give --role")
    release = _release(model, version, Workspace())
    if form == "skypilot":
        _write_task(output, exports.skypilot(name, args, release))
        return
    if form == "kserve":
        manifests = exports.kserve(name, args, release)
    elif form == "argo-rollouts":
        rollout = deploy.rollout
        manifests = exports.argo_rollouts(name, args, release, rollout.steps, rollout.step_seconds)
    else:
        manifests = rolling_manifests(name, args, release)
    rules.check([*manifests, *role], name)
    beside = {ROLE_FILE: as_yaml(*role)} if form == "manifests" else {}
    written = write_manifests(output, manifests, beside)
    click.echo(f"{release.name} {release.version} ({release.bento}) at {name}, in {output}:")
    for path in written:
        click.echo(f"  {path.name}")
    if not rules.has_schemas():
        click.echo(
            "note: checked by our own rules alone; with `pip install kubernetes-validate` by "
            "Kubernetes' schemas too"
        )
    if form == "manifests":
        for remark in args.remarks():
            click.echo(f"note: {remark}")
        click.echo(f"\n# {ROLE_FILE}: what Weighbridge must be allowed to roll out by itself")
        click.echo(as_yaml(*role, compact=True), nl=False)


def _write_task(output: Path, task: dict[str, object]) -> None:
    from weighbridge.core.files import replace_text
    from weighbridge.serving.targets.kubernetes.files import HEADER, as_yaml
    from weighbridge.serving.targets.kubernetes.schemas import SkyTask

    SkyTask.model_validate(task)
    path = output / "skypilot.yaml"
    try:
        replace_text(path, HEADER + as_yaml(task))
    except OSError as exc:
        raise BadInput(f"writing {path}", str(exc), "give a folder you may write to") from exc
    click.echo(f"wrote {path}; serve it with: sky serve up {path}")


def _what_to_render(target: str, workspace: Workspace) -> tuple[str, str, "DeployArgs"]:
    """Return the model that a target serves, the target's name and its arguments.

    Raises:
        BadInput: there is no such target or recipe.
        Unavailable: MLflow does not answer.
    """
    if Path(target).suffix in (".yaml", ".yml"):
        from weighbridge.configs.load import load

        recipe = load(Path(target))
        return recipe.name, recipe.target, recipe.deploy
    from weighbridge.registry import Registry
    from weighbridge.rollout.deploy_args import read_deploy_args

    binding = Registry.connect(workspace.settings).binding(target)
    if binding is None:
        raise BadInput(
            f"rendering '{target}'",
            "there is no target of this name",
            "give a recipe's file, or see: weighbridge status",
        )
    return binding.model, binding.target, read_deploy_args(binding.target, binding.deploy)


def _release(model: str, version: str, workspace: Workspace) -> "Release":
    """Return a version as something to serve.

    Raises:
        BadInput: there is no such version, or no Bento was built of it.
        Unavailable: MLflow does not answer.
    """
    from weighbridge.registry import Registry
    from weighbridge.rollout.champion import built_release

    registry = Registry.connect(workspace.settings)
    found = registry.version(model, version)
    release = built_release(found, 0)
    if release is None:
        raise BadInput(
            f"rendering {model} {found.version}",
            "no Bento was built of this version",
            "give one that a release has packaged; see: weighbridge models " + model,
        )
    return release


def _kubernetes_args(name: str, deploy: "DeployArgs") -> "KubernetesArgs":
    from weighbridge.serving.targets.kubernetes.args import KubernetesArgs

    if not isinstance(deploy.target, KubernetesArgs):
        raise BadInput(
            f"rendering '{name}'",
            f"it is a target of the kind `{deploy.target.kind}`",
            "set deploy.target.kind to kubernetes, with an image",
        )
    return deploy.target
