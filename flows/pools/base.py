"""What base job templates have in common: their defaults, and the parts they are made of.

A template is a JSON document of Prefect's: `job_configuration` is what a worker starts, with
placeholders; `variables` is the JSON schema of what fills them. Whatever a recipe gives under
`run.STAGE.job_variables` stands above the defaults here. The variables are named as in Prefect's
own templates, so that its documentation holds here too.

No value of a secret is ever in a template. Processes have the environment of their worker; the
others refer to a secret by name, which is read when a job starts.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from weighbridge.core.container_layout import HOME
from weighbridge.core.errors import BadInput

Template = dict[str, Any]

START_SECONDS: Final = 900
"""For a node to come up and an image of gigabytes to be pulled; Prefect's own is 60 or 300."""
LABELS: Final = {"app.kubernetes.io/name": "weighbridge", "app.kubernetes.io/component": "stage"}
"""Of the pods; Prefect's worker writes `part-of`, `managed-by` and `version` itself."""
COMMON: Final = ("name", "env", "labels", "command")
"""Variables that every type of pool has."""


class JobDefaults(BaseModel):
    """What a job of a pool gets where a recipe says nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field("", description="Image of the jobs, as `weighbridge image` has named it.")
    env: Mapping[str, str] = Field({}, description="Environment variables that are no secrets.")
    secrets: tuple[str, ...] = Field((), description="Names of variables that are secrets.")
    secret: str = Field(
        "weighbridge",
        description="Where they lie: name of a Kubernetes Secret, ARN of a secret of AWS, or what "
        "the names of Prefect's Secret blocks begin with.",
    )
    gpus: int = Field(0, ge=0, description="Graphics cards of a job.")
    cpus: float | None = Field(None, gt=0, description="Processor cores of a job.")
    memory: ByteSize | None = Field(None, gt=0, description="Memory of a job, such as 32GiB.")
    shared_memory: ByteSize = Field(
        ByteSize(1 << 30),
        gt=0,
        description="Size of /dev/shm, by which PyTorch's processes hand on tensors.",
    )


def job_defaults(doing: str, **values: Any) -> JobDefaults:
    """Return the defaults that somebody has named. Raises BadInput where one cannot be."""
    try:
        return JobDefaults(**values)
    except ValidationError as exc:
        wrong = "; ".join(f"{error['loc'][0]}: {error['msg']}" for error in exc.errors())
        raise BadInput(doing, wrong, "sizes are written 512MiB, 32GiB") from exc


def in_containers(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a job that has a file system of its own."""
    # A worker hands on its own settings, and so a folder that is not there.
    return {"PREFECT_HOME": f"{HOME}/prefect", **env}


def block_name(secret: str, variable: str) -> str:
    """Return the name of the Secret block in Prefect that holds an environment variable."""
    # Letters, digits and dashes are what Prefect takes.
    return f"{secret}-{variable.lower().replace('_', '-')}"


def common(env: Mapping[str, str], command: str | None = None) -> dict[str, Any]:
    """Return the variables that every type of pool has."""
    texts = {"additionalProperties": {"type": "string"}}
    return {
        "name": variable("string", "Name of what a worker starts."),
        "env": {**variable("object", "Environment variables.", dict(env)), **texts},
        "labels": {**variable("object", "Labels of what a worker starts."), **texts},
        "command": variable("string", "Command of a flow run; empty: Prefect's own.", command),
    }


def image_variable(defaults: JobDefaults) -> dict[str, Any]:
    """Return the variable that names the image of a job."""
    return variable("string", "Image, as `weighbridge image` names it.", defaults.image or None)


def variable(kind: str, description: str, default: object = None) -> dict[str, Any]:
    """Return the schema of a variable; without a default, what would hold its value is left out."""
    schema: dict[str, Any] = {"type": kind, "description": description}
    return schema if default is None else {**schema, "default": default}


def value_of(name: str) -> str:
    """Return the placeholder that the value of a variable takes the place of."""
    return "{{ " + name + " }}"


def base_template(
    configuration: dict[str, Any],
    variables: dict[str, Any],
    definitions: Mapping[str, Any] | None = None,
) -> Template:
    """Return a template: what a worker starts, and the variables that fill its placeholders."""
    titled = {
        name: {"title": name.replace("_", " ").capitalize(), **schema}
        for name, schema in variables.items()
    }
    schema = {"type": "object", "properties": titled}
    return {
        "job_configuration": configuration,
        "variables": {**schema, "definitions": dict(definitions)} if definitions else schema,
    }


def bytes_text(size: ByteSize | None, unit: str = "") -> str | None:
    """Return a number of bytes as text, exactly."""
    return None if size is None else f"{int(size)}{unit}"


def block_schema(title: str, slug: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema by which Prefect's form offers the blocks of a type."""
    return {
        "title": title,
        "type": "object",
        "properties": dict(properties),
        "block_type_slug": slug,
        "block_schema_references": {},
    }
