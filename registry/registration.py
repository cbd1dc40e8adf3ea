"""Registering a version: once for one artifact in one role with one parent."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weighbridge.core.artifact import Artifact
from weighbridge.core.formatting import human_size
from weighbridge.registry import logged_models
from weighbridge.registry.connection import Connection, checked_name
from weighbridge.registry.runs import MlflowRun
from weighbridge.registry.versions import FACTS, MAX_TAG, REMOVED, Role, Version, version_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

_ROLES: Mapping[Role, str] = {
    "base": "The base model, as it was downloaded.",
    "adapter": "The PEFT adapter that fine-tuning trained.",
    "merged": "The base model with the adapter merged into its weights.",
    "variant": "A servable form of the merged weights.",
}


@dataclass(frozen=True)
class VersionSpec:
    """What a version is to be; two with one `identity` are the same version."""

    name: str
    role: Role
    artifact: Artifact
    parent: Version | None
    label: str
    """What people call it."""
    tags: Mapping[str, str]
    params: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Return a digest of what makes it this version: not its label, tags or settings."""
        parent = self.parent.version if self.parent else ""
        facts = [self.name, self.role, self.artifact.digest, parent]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _lineage(self) -> dict[str, str]:
        return {"parent": self.parent.version, "base": self.parent.base} if self.parent else {}

    def all_tags(self) -> dict[str, str]:
        """Return the tags that logged model and version share."""
        origin = {
            "source": self.artifact.origin.get("uri", ""),
            "revision": self.artifact.origin.get("revision", ""),
        }
        facts = {
            "role": self.role,
            "label": self.label if self.label != self.role else "",
            **self._lineage(),
            "digest": self.artifact.digest,
            **origin,
            **self.tags,
            logged_models.IDENTITY: self.identity,
            FACTS: json.dumps({"format": self.artifact.format, "size": self.artifact.size}),
        }
        # Cut here, since MLflow would refuse the whole version at the end of a long run.
        return {key: value[:MAX_TAG] for key, value in facts.items() if value}


def register(connection: Connection, run: MlflowRun, spec: VersionSpec) -> Version:
    """Return the version of this spec, registered if it is not.

    It is registered once, whoever else tries and whenever one of them is killed.
    """
    name = checked_name(spec.name)
    with (
        connection.doing(f"registering {spec.label or spec.role} of '{name}' in MLflow"),
        connection.alone(f"version-{spec.identity}"),
    ):
        if (existing := _find(connection, name, spec.identity)) is not None:
            return _with_link(connection, _with_files(connection, existing, spec.artifact))
        model = logged_models.ensure(
            connection,
            run,
            name=(spec.label or spec.role).replace("/", "-"),
            identity=spec.identity,
            artifact=spec.artifact,
            tags=spec.all_tags(),
            params=spec.params,
        )
        _ensure_registered_model(connection, name)
        version = _oldest(connection, spec, _create(connection, run, spec, model))
        return _with_link(connection, version, model)


def _create(
    connection: Connection, run: MlflowRun, spec: VersionSpec, model: "LoggedModel"
) -> Version:
    # As a tag, too: MLflow takes the logged model's id and gives None back for it.
    tags = {**spec.all_tags(), "model_id": model.model_id}
    created = connection.client.create_model_version(
        spec.name,
        model.artifact_location,
        run_id=run.run_id,
        tags=tags,
        description=_description(spec),
        model_id=model.model_id,
    )
    logger.info(
        "registered %s as version %s of '%s'", spec.label or spec.role, created.version, spec.name
    )
    return version_of(created)


def _oldest(connection: Connection, spec: VersionSpec, created: Version) -> Version:
    """Return the one that stays: another machine may have registered the same meanwhile, and the
    lowest number stays.
    """
    oldest = _find(connection, spec.name, spec.identity)
    if oldest is None or oldest.version == created.version:
        return created
    connection.client.delete_model_version(created.name, created.version)
    return oldest


def _with_files(connection: Connection, version: Version, artifact: Artifact) -> Version:
    """Put the files back that were removed to make room, now that they were made again."""
    if REMOVED in version.tags and version.model_id:
        model = connection.client.get_logged_model(version.model_id)
        logged_models.upload(connection, model, artifact)
        connection.client.delete_model_version_tag(version.name, version.version, REMOVED)
    return version


def _with_link(
    connection: Connection, version: Version, model: "LoggedModel | None" = None
) -> Version:
    """Have the logged model name the version, also where a process was killed before it did."""
    if version.model_id:
        model = model or connection.client.get_logged_model(version.model_id)
        logged_models.note_registered(connection, model, version.name, version.version)
    return version


def _ensure_registered_model(connection: Connection, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        # Not asked for first: somebody could make it between question and answer.
        connection.client.create_registered_model(name, description=_ABOUT.format(name=name))
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


_ABOUT = """\
Versions come as a chain: **base** → **adapter** → **merged** → one **variant** per servable form. \
The tags of each say what it was made from (`parent`, `base`, `source`, `recipe`) \
and what it is (`role`, `digest`).

`champion` is the variant that serves; `challenger` is the winner of the last weighing. \
Moving `champion` moves what is served: `weighbridge promote {name} VERSION`, or here.
"""


def _description(spec: VersionSpec) -> str:
    parent, origin = spec.parent, spec.artifact.origin
    rows = {
        "made from": f"version {parent.version} ({parent.label})" if parent else "",
        "source": f"`{origin['uri']}`" if origin.get("uri") else "",
        "format": spec.artifact.format,
        "size": human_size(spec.artifact.size),
        "digest": f"`{spec.artifact.digest}`",
        **{key: f"`{value}`" for key, value in spec.params.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    title = f"{spec.label}: " if spec.label and spec.label != spec.role else ""
    return f"{title}{_ROLES[spec.role]}\n\n| | |\n| --- | --- |\n{table}\n"


def _find(connection: Connection, name: str, identity: str) -> Version | None:
    entities = connection.client.search_model_versions(
        f"name = '{name}' and tags.`{logged_models.IDENTITY}` = '{identity}'"
    )
    versions = [version_of(entity) for entity in entities]
    # By number: as text, version 10 would come before 9.
    return min(versions, key=lambda version: int(version.version), default=None)
