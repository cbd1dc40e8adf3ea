"""Which types of work pools there are, and the base job template of each."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, get_args

from weighbridge.core.errors import BadInput
from weighbridge.core.plugins import suggestion
from weighbridge.flows.pools.base import JobDefaults, Template
from weighbridge.flows.pools.docker import docker_template
from weighbridge.flows.pools.ecs import ecs_template
from weighbridge.flows.pools.kubernetes import kubernetes_template
from weighbridge.flows.pools.process import process_template

PoolType = Literal["process", "docker", "kubernetes", "ecs"]
POOL_TYPES: Final[tuple[PoolType, ...]] = get_args(PoolType)

PLAIN_VARIABLES: Final = (
    *("WEIGHBRIDGE_STORE", "WEIGHBRIDGE_TRACKING_URI", "WEIGHBRIDGE_ARTIFACT_ROOT"),
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "MLFLOW_S3_ENDPOINT_URL"),
    *("HF_ENDPOINT", "UV_DEFAULT_INDEX", "UV_INDEX"),
)
"""Environment variables of a stage that say where things are."""
SECRET_VARIABLES: Final = (
    *("WEIGHBRIDGE_DATABASE_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SESSION_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("MLFLOW_TRACKING_TOKEN", "HF_TOKEN"),
)
"""Environment variables of a stage that let somebody in."""
_TEMPLATES: Final[Mapping[PoolType, Callable[[JobDefaults], Template]]] = {
    "process": process_template,
    "docker": docker_template,
    "kubernetes": kubernetes_template,
    "ecs": ecs_template,
}


def base_job_template(kind: PoolType, defaults: JobDefaults) -> Template:
    """Return the base job template of a pool of this type."""
    return _TEMPLATES[kind](defaults)


def with_environment(defaults: JobDefaults, environment: Mapping[str, str]) -> JobDefaults:
    """Return the defaults with those of a stage's variables that an environment has.

    Of secrets the names are taken. An address with a user and a password in it is a secret too.
    """
    plain = {name: environment[name] for name in PLAIN_VARIABLES if environment.get(name)}
    secrets = [name for name in SECRET_VARIABLES if environment.get(name)]
    with_password = [name for name, value in plain.items() if "@" in value]
    return defaults.model_copy(
        update={
            "env": {
                **{name: value for name, value in plain.items() if name not in with_password},
                **defaults.env,
            },
            "secrets": tuple(dict.fromkeys([*defaults.secrets, *with_password, *secrets])),
        }
    )


def set_default(template: Template, variable: str, value: object) -> None:
    """Let a variable of the template have another default.

    Raises: BadInput: the template has no such variable.
    """
    properties = template["variables"]["properties"]
    if variable not in properties:
        doing = f"setting the default of '{variable}'"
        wrong = "the pool's template has no such variable"
        raise BadInput(doing, wrong, suggestion(variable, sorted(properties)))
    properties[variable]["default"] = value
