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
    required=True,
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
def render(target: str, output: Path, form: str, version: str) -> None:
    """Write the manifests of a Kubernetes target to DIR, with a kustomization.yaml.

    TARGET_OR_RECIPE is the name of a target, or a recipe's file whose `deploy.target` is of the
    kind `kubernetes`. The same version and arguments give the same files. Every manifest is checked
    first. Printed is also the Role that Weighbridge needs where it does the rollout itself.
    """
    from weighbridge.serving.targets.kubernetes import exports, rules
    from weighbridge.serving.targets.kubernetes.access import role_manifests
    from weighbridge.serving.targets.kubernetes.files import as_yaml, write_manifests
    from weighbridge.serving.targets.kubernetes.manifests import rolling_manifests

    name, deploy, release = _what_to_render(target, version, Workspace())
    args = _kubernetes_args(name, deploy)
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
    role = role_manifests(name, args)
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


def _what_to_render(
    target: str, version: str, workspace: Workspace
) -> tuple[str, "DeployArgs", "Release"]:
    """Return a target's name, its arguments and what it is to serve.

    Raises:
        BadInput: there is no such target, recipe or version, or no Bento was built of it.
        Unavailable: MLflow does not answer.
    """
    from weighbridge.registry import Registry
    from weighbridge.rollout.champion import built_release

    registry = Registry.connect(workspace.settings)
    if Path(target).suffix in (".yaml", ".yml"):
        from weighbridge.configs.load import load

        recipe = load(Path(target))
        model, name, deploy = recipe.name, recipe.target, recipe.deploy
    else:
        from weighbridge.rollout.deploy_args import read_deploy_args

        binding = registry.binding(target)
        if binding is None:
            raise BadInput(
                f"rendering '{target}'",
                "there is no target of this name",
                "give a recipe's file, or see: weighbridge status",
            )
        model, name = binding.model, binding.target
        deploy = read_deploy_args(name, binding.deploy)
    found = registry.version(model, version)
    release = built_release(found, 0)
    if release is None:
        raise BadInput(
            f"rendering {model} {found.version}",
            "no Bento was built of this version",
            "give one that a release has packaged; see: weighbridge models " + model,
        )
    return name, deploy, release


def _kubernetes_args(name: str, deploy: "DeployArgs") -> "KubernetesArgs":
    from weighbridge.serving.targets.kubernetes.args import KubernetesArgs

    if not isinstance(deploy.target, KubernetesArgs):
        raise BadInput(
            f"rendering '{name}'",
            f"it is a target of the kind `{deploy.target.kind}`",
            "set deploy.target.kind to kubernetes, with an image",
        )
    return deploy.target
