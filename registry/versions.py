"""Versions of a registered model: what each was made from, and what it is called."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.formatting import human_size
from weighbridge.core.store import Store, link_or_copy
from weighbridge.registry import logged_models
from weighbridge.registry.connection import Connection, checked_name
from weighbridge.registry.runs import MlflowRun

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger("weighbridge.registry")

Role = Literal["base", "adapter", "merged", "variant"]
CHAMPION, CHALLENGER = "champion", "challenger"
MEASURED, FACTS = "weighbridge.measured.", "weighbridge.facts"
CANDIDATE = "candidate"
_LONGEST_TAG = 5000

_SAYS: Mapping[Role, str] = {
    "base": "The base model, as it was downloaded.",
    "adapter": "The PEFT adapter that fine-tuning trained.",
    "merged": "The base model with the adapter merged into its weights.",
    "variant": "A servable form of the merged weights.",
}


@dataclass(frozen=True)
class Version:
    """One version of a registered model, as we know it."""

    name: str
    version: str
    role: str
    digest: str
    format: str
    size: int
    model_id: str
    run_id: str
    parent: str
    """Version it was made from; empty for a base model."""
    base: str
    """Version of the base model at the beginning of the chain; itself for a base model."""
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: float
    """Unix time."""

    @property
    def label(self) -> str:
        """What a person calls it: the variant's label, else the role."""
        return self.tags.get("label") or self.role

    @property
    def short(self) -> str:
        return self.digest.removeprefix("sha256:")[:12]


@dataclass(frozen=True)
class Proposal:
    """A version to be registered; two with one `identity` are the same version."""

    name: str
    role: Role
    artifact: Artifact
    parent: Version | None
    label: str
    tags: Mapping[str, str]
    params: Mapping[str, str]

    @property
    def identity(self) -> str:
        facts = [
            self.name,
            self.role,
            self.artifact.digest,
            self.parent.version if self.parent else "",
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _lineage(self) -> dict[str, str]:
        return {"parent": self.parent.version, "base": self.parent.base} if self.parent else {}

    def all_tags(self) -> dict[str, str]:
        """Tags that logged model and version share."""
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
        return {key: value[:_LONGEST_TAG] for key, value in facts.items() if value}


def register(connection: Connection, run: MlflowRun, proposal: Proposal) -> Version:
    """The version for this proposal, registered if it is not: once, whoever else tries and whenever
    one is killed.
    """
    name = checked_name(proposal.name)
    with (
        connection.doing(f"registering {proposal.label or proposal.role} of '{name}' in MLflow"),
        connection.alone(f"version-{proposal.identity}"),
    ):
        if (known := _find(connection, name, proposal.identity)) is not None:
            return _with_link(connection, known)
        model = logged_models.ensure(
            connection,
            run,
            name=(proposal.label or proposal.role).replace("/", "-"),
            identity=proposal.identity,
            artifact=proposal.artifact,
            tags=proposal.all_tags(),
            params=proposal.params,
        )
        _ensure_registered_model(connection, name)
        return _with_link(
            connection,
            _settle(connection, proposal, _create(connection, run, proposal, model)),
            model,
        )


def _create(
    connection: Connection, run: MlflowRun, proposal: Proposal, model: "LoggedModel"
) -> Version:
    tags = {**proposal.all_tags(), "model_id": model.model_id}
    made = connection.client.create_model_version(
        proposal.name,
        model.artifact_location,
        run_id=run.run_id,
        tags=tags,
        description=_description(proposal),
        model_id=model.model_id,
    )
    logger.info(
        "registered %s as version %s of '%s'",
        proposal.label or proposal.role,
        made.version,
        proposal.name,
    )
    return _version(made)


def _settle(connection: Connection, proposal: Proposal, made: Version) -> Version:
    """Another machine may have registered the same meanwhile: the lowest number stays."""
    winner = _find(connection, proposal.name, proposal.identity)
    if winner is None or winner.version == made.version:
        return made
    connection.client.delete_model_version(made.name, made.version)
    return winner


def _with_link(
    connection: Connection, version: Version, model: "LoggedModel | None" = None
) -> Version:
    if version.model_id:
        model = model or connection.client.get_logged_model(version.model_id)
        logged_models.note_registered(connection, model, version.name, version.version)
    return version


def _ensure_registered_model(connection: Connection, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        connection.client.create_registered_model(name, description=_ABOUT.format(name=name))
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


_ABOUT = """\
Versions come as a chain: **base** → **adapter** → **merged** → one **variant** per servable form. \
The tags of each say what it was made from (`parent`, `base`, `source`, `recipe`) and what it is (`role`, `digest`).

`champion` is the variant that serves; `challenger` is the winner of the last weighing. \
Moving `champion` moves what is served: `weighbridge promote {name} VERSION`, or here.
"""


def _description(proposal: Proposal) -> str:
    parent, origin = proposal.parent, proposal.artifact.origin
    rows = {
        "made from": f"version {parent.version} ({parent.label})" if parent else "",
        "source": f"`{origin['uri']}`" if origin.get("uri") else "",
        "format": proposal.artifact.format,
        "size": human_size(proposal.artifact.size),
        "digest": f"`{proposal.artifact.digest}`",
        **{key: f"`{value}`" for key, value in proposal.params.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    title = f"{proposal.label}: " if proposal.label and proposal.label != proposal.role else ""
    return f"{title}{_SAYS[proposal.role]}\n\n| | |\n| --- | --- |\n{table}\n"


def _version(found: "ModelVersion") -> Version:
    tags = dict(found.tags)
    facts = json.loads(tags.get(FACTS, "{}"))
    return Version(
        name=found.name,
        version=str(found.version),
        role=tags.get("role", ""),
        digest=tags.get("digest", ""),
        format=str(facts.get("format", "")),
        size=int(facts.get("size", 0)),
        model_id=tags.get("model_id", ""),
        run_id=found.run_id or "",
        parent=tags.get("parent", ""),
        base=tags.get("base", "") or str(found.version),
        aliases=tuple(sorted(found.aliases)),
        tags={key: value for key, value in tags.items() if not key.startswith("mlflow.")},
        created=found.creation_timestamp / 1000,
    )


def _find(connection: Connection, name: str, identity: str) -> Version | None:
    found = connection.client.search_model_versions(
        f"name = '{name}' and tags.`{logged_models.IDENTITY}` = '{identity}'"
    )
    ordered = sorted((_version(item) for item in found), key=lambda version: int(version.version))
    return ordered[0] if ordered else None


def listed(connection: Connection, name: str) -> list[Version]:
    """Every version, newest first, aliases included."""
    with connection.doing(f"listing the versions of '{name}' in MLflow"):
        aliases = _aliases(connection, name)
        found = list(_all(connection, f"name = '{checked_name(name)}'"))
    by_version: dict[str, list[str]] = {}
    for alias, version in aliases.items():
        by_version.setdefault(version, []).append(alias)
    versions = [_with_aliases(_version(item), by_version) for item in found]
    return sorted(versions, key=lambda version: -int(version.version))


def _with_aliases(version: Version, by_version: Mapping[str, list[str]]) -> Version:
    return replace(version, aliases=tuple(sorted(by_version.get(version.version, []))))


def _all(connection: Connection, query: str) -> Iterator["ModelVersion"]:
    token = None
    while True:
        page = connection.client.search_model_versions(query, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _aliases(connection: Connection, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return {
            str(k): str(v)
            for k, v in connection.client.get_registered_model(checked_name(name)).aliases.items()
        }
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise BadInput(
            f"looking for model '{name}'", "MLflow has none of this name", "see: weighbridge models"
        ) from exc


def get(connection: Connection, name: str, version: str) -> Version:
    """One version by its number.

    Raises:
        BadInput: there is none.
    """
    from mlflow.exceptions import MlflowException

    with connection.doing(f"looking for version {version} of '{name}' in MLflow"):
        try:
            return _version(connection.client.get_model_version(checked_name(name), version))
        except MlflowException as exc:
            if exc.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            doing = f"looking for version {version} of '{name}'"
            raise BadInput(
                doing, "MLflow has no such version", f"see: weighbridge models {name}"
            ) from exc


def by_alias(connection: Connection, name: str, alias: str) -> Version | None:
    """The version an alias names now; None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    with connection.doing(f"reading '{name}@{alias}' in MLflow"):
        try:
            return _version(connection.client.get_model_version_by_alias(checked_name(name), alias))
        except MlflowException as exc:
            if exc.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None


def set_alias(connection: Connection, version: Version, alias: str) -> None:
    """Let an alias name this version."""
    with connection.doing(f"setting '{version.name}@{alias}' in MLflow"):
        connection.client.set_registered_model_alias(version.name, alias, version.version)


def delete_alias(connection: Connection, name: str, alias: str) -> None:
    """Let an alias name nothing."""
    with connection.doing(f"deleting '{name}@{alias}' in MLflow"):
        connection.client.delete_registered_model_alias(name, alias)


def tag(connection: Connection, version: Version, tags: Mapping[str, str]) -> None:
    """Set tags on a version; empty values are left out."""
    with connection.doing(f"tagging version {version.version} of '{version.name}' in MLflow"):
        for key, value in tags.items():
            if value and version.tags.get(key) != value:
                connection.client.set_model_version_tag(
                    version.name, version.version, key, value[:_LONGEST_TAG]
                )


def lineage(connection: Connection, version: Version) -> list[Version]:
    """The chain a version was made through, base first, itself last."""
    chain = [version]
    while chain[0].parent and len(chain) < 20:
        chain.insert(0, get(connection, version.name, chain[0].parent))
    return chain


def restore(connection: Connection, version: Version, store: Store) -> Artifact:
    """A version's artifact, back in the store, its digest proved.

    Raises:
        Unavailable: MLflow does not hold its files, or holds others.
    """
    doing = f"fetching version {version.version} of '{version.name}' from MLflow"
    with connection.doing(doing), store.scratch() as scratch:
        folder = logged_models.fetch(connection, version.model_id, scratch / "fetched")
        for path in logged_models.own_files(folder):
            link_or_copy(path, scratch / "files" / path.relative_to(folder))
        origin = {
            key: version.tags[tag]
            for key, tag in (("uri", "source"), ("revision", "revision"))
            if tag in version.tags
        }
        artifact = store.add(scratch / "files", cast(Format, version.format), origin)
    if artifact.digest != version.digest:
        store.remove(artifact)
        raise Unavailable(
            doing, f"its files have the digest {artifact.digest}, registered is {version.digest}"
        )
    return artifact
