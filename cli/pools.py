"""Commands about work pools: their base job templates, printed and applied in Prefect."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings

if TYPE_CHECKING:
    from weighbridge.flows.pools.apply import Applied
    from weighbridge.flows.pools.base import JobDefaults, Template
    from weighbridge.flows.pools.templates import PoolType

DOING = "making a work pool's template"
OFTEN = "PREFECT_WORKER_QUERY_SECONDS=2"
"""A stage waits for half of that on average; Prefect's own is 10. Each question takes 20 ms of the
server's processor.
"""
Command = TypeVar("Command", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--type", "kind", required=True, help="process, docker, kubernetes or ecs."),
    click.option("--image", default="", help="Image of the jobs: what `weighbridge image` named."),
    click.option("--gpus", type=click.IntRange(0), default=0, help="Graphics cards of a job."),
    click.option("--cpus", type=click.FloatRange(0, min_open=True), help="Cores of a job."),
    click.option("--memory", help="Memory of a job, such as 32GiB."),
    click.option("--shm-size", default="1GiB", show_default=True, help="Size of /dev/shm."),
    click.option(
        "--env",
        "names",
        multiple=True,
        metavar="NAME",
        help="A further variable of this environment that jobs get, readable by everybody.",
    ),
    click.option(
        "--secret-env",
        "secret_names",
        multiple=True,
        metavar="NAME",
        help="A further variable that is a secret: the template refers to it.",
    ),
    click.option(
        "--secret",
        default="weighbridge",
        show_default=True,
        help="Where secrets lie: the Secret in Kubernetes, the ARN on AWS, or how Prefect's Secret "
        "blocks begin.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="VARIABLE=VALUE",
        help="Default of any other variable of the template; JSON, or else text.",
    ),
)


@click.group()
def pools() -> None:
    """Work pools in Prefect that carry out stages where their hardware is.

    A recipe names one for a stage: `run: {finetune: {pool: gpu}}`.
    """


def _with_options(command: Command) -> Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@pools.command()
@_with_options
def template(kind: str, **options: Any) -> None:
    """Print the base job template of a type of pool as JSON, for Terraform and others."""
    pool_type = _pool_type(kind)
    made = _template(pool_type, _defaults(pool_type, options), options["settings"])
    click.echo(json.dumps(made, indent=2))


@pools.command()
@_with_options
@click.option("--pool", help="Name of the pool; without it the type.")
@click.option("--limit", type=click.IntRange(1), help="Most jobs at once, on all its machines.")
@click.option("--save-secrets", is_flag=True, help="Write this environment's into Prefect.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def apply(
    kind: str,
    pool: str | None,
    limit: int | None,
    save_secrets: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Create a work pool, or change it, so that its jobs carry out stages.

    Where a stage's artifacts and MLflow are is taken from this environment. A second call with the
    same options changes nothing. Nothing of a secret but its name is written into a pool.
    """
    from dataclasses import asdict

    from weighbridge.flows.prefect_server import lasting_prefect_api

    pool_type = _pool_type(kind)
    name = pool or kind
    defaults = _defaults(pool_type, options)
    job_template = _template(pool_type, defaults, options["settings"])
    with lasting_prefect_api(Settings(), f"applying the work pool {name}"):
        # Imported here: it takes Prefect with it, which must find its settings made.
        from weighbridge.flows.pools import apply as applying

        if save_secrets and not dry_run:
            applying.save_secrets(name, _blocks(pool_type, defaults))
        applied = applying.apply_pool(name, pool_type, job_template, limit, dry=dry_run)
    if as_json:
        click.echo(json.dumps({**asdict(applied), "dry_run": dry_run}, indent=2))
        return
    _show(applied, defaults, job_template, dry_run=dry_run)


def _pool_type(kind: str) -> PoolType:
    from weighbridge.core.plugins import suggestion
    from weighbridge.flows.pools.templates import POOL_TYPES

    for known in POOL_TYPES:
        if kind == known:
            return known
    raise BadInput(DOING, f"there is no type '{kind}'", suggestion(kind, list(POOL_TYPES)))


def _template(kind: PoolType, defaults: JobDefaults, settings: Sequence[str]) -> Template:
    from weighbridge.flows.pools.templates import base_job_template, set_default

    made = base_job_template(kind, defaults)
    for option in settings:
        variable, separator, value = option.partition("=")
        if not separator:
            raise click.UsageError(f"--set {option}: give VARIABLE=VALUE")
        set_default(made, variable, _json_or_text(value))
    return made


def _defaults(kind: PoolType, options: dict[str, Any]) -> JobDefaults:
    from weighbridge.flows.pools.base import job_defaults
    from weighbridge.flows.pools.templates import with_environment

    if missing := [name for name in options["names"] if name not in os.environ]:
        raise BadInput(DOING, f"--env {missing[0]}: this environment has no such variable")
    defaults = job_defaults(
        DOING,
        image=options["image"],
        env={name: os.environ[name] for name in options["names"]},
        secrets=options["secret_names"],
        secret=options["secret"],
        gpus=options["gpus"],
        cpus=options["cpus"],
        memory=options["memory"],
        shared_memory=options["shm_size"],
    )
    # Processes have the environment of their worker, secrets and all.
    return defaults if kind == "process" else with_environment(defaults, os.environ)


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _blocks(kind: PoolType, defaults: JobDefaults) -> dict[str, str]:
    """Return the values of the Secret blocks that a template refers to, by their names."""
    from weighbridge.flows.pools.base import block_name

    if kind != "docker":
        raise BadInput(DOING, f"pools of type {kind} read no secrets from Prefect", "see the docs")
    if missing := [name for name in defaults.secrets if not os.environ.get(name)]:
        raise BadInput(DOING, f"{missing[0]} is not set", "set it, or leave out --save-secrets")
    return {block_name(defaults.secret, name): os.environ[name] for name in defaults.secrets}


def _show(applied: Applied, defaults: JobDefaults, made: Template, *, dry_run: bool) -> None:
    would = {"created": "would be created", "changed": "would be changed"}
    said = would.get(applied.action, applied.action) if dry_run else applied.action
    click.echo(f"work pool {applied.pool} ({applied.kind}): {said}")
    for line in (*applied.changes, *_remarks(applied, defaults, made)):
        click.echo(f"  {line}")


def _remarks(applied: Applied, defaults: JobDefaults, made: Template) -> Sequence[str]:
    """Return what else has to be done, and what is suspicious."""
    own = [name for name, value in defaults.env.items() if _is_loopback(value)]
    variables = made["variables"]["properties"]
    remarks = []
    if own and variables.get("network_mode", {}).get("default") != "host":
        remarks.append(f"warning: {', '.join(own)}: a container's own loopback is meant there")
    if applied.kind != "process" and "default" not in variables["image"]:
        remarks.append("warning: no image: build one with `weighbridge image`, and give --image")
    if applied.missing_blocks:
        blocks = ", ".join(applied.missing_blocks)
        remarks.append(f"Prefect lacks the Secret blocks {blocks}; write them: --save-secrets")
    if applied.kind == "kubernetes" and defaults.secrets:
        namespace = variables["namespace"]["default"]
        command = f"kubectl -n {namespace} create secret generic {defaults.secret}"
        remarks.append(f"its secrets are {', '.join(defaults.secrets)}; write them into a file")
        remarks.append(f"of lines NAME=VALUE, then: {command} --from-env-file=FILE")
    if applied.kind == "ecs" and "default" not in variables["execution_role_arn"]:
        needs = "to pull the image, read secrets and log"
        remarks.append(f"{needs}, tasks want a role: --set execution_role_arn=ARN")
    worker = f"{OFTEN} prefect worker start --pool {applied.pool} --type {applied.kind}"
    # Two stages on one machine would measure each other.
    worker += " --limit 1" if applied.kind in ("process", "docker") else ""
    return [*remarks, f"on each machine of it: {worker}", _for_recipes(applied.pool)]


def _for_recipes(pool: str) -> str:
    return f"in a recipe: run: {{finetune: {{pool: {pool}}}}}"


def _is_loopback(value: str) -> bool:
    return any(f"//{host}" in value for host in ("127.", "localhost", "[::1]"))
