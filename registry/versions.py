"""Versions of a registered model: reading them, their aliases and tags, and their files."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.store import Store, link_or_copy
from weighbridge.registry import logged_models
from weighbridge.registry.connection import Connection, checked_name

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

Role = Literal["base", "adapter", "merged", "variant"]
CHAMPION, CHALLENGER = "champion", "challenger"
MEASURED, FACTS = "weighbridge.measured.", "weighbridge.facts"
CANDIDATE = "candidate"
REMOVED = "weights_removed"
"""Tag: when the files were removed to make room. What was measured of them stays."""
MAX_TAG = 5000
"""Characters that servers of MLflow have always taken as a tag; newer ones take more."""
_NEAR = 0.85
"""Likeness of `campion`, `champoin` and `champions`; `champion-old` is less like it."""
_LONGEST_LINEAGE = 20
"""A chain has four members; a parent that somebody tagged by hand must not make it endless."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

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
        """Return what a person calls it: the variant's label, else the role."""
        return self.tags.get("label") or self.role

    @property
    def short(self) -> str:
        return self.digest.removeprefix("sha256:")[:12]


def version_of(entity: "ModelVersion") -> Version:
    """Return MLflow's own object as our value."""
    tags = dict(entity.tags)
    facts = json.loads(tags.get(FACTS, "{}"))
    return Version(
        name=entity.name,
        version=str(entity.version),
        role=tags.get("role", ""),
        digest=tags.get("digest", ""),
        format=str(facts.get("format", "")),
        size=int(facts.get("size", 0)),
        model_id=tags.get("model_id", ""),
        run_id=entity.run_id or "",
        parent=tags.get("parent", ""),
        base=tags.get("base", "") or str(entity.version),
        aliases=tuple(sorted(entity.aliases)),
        tags={key: value for key, value in tags.items() if not key.startswith("mlflow.")},
        created=entity.creation_timestamp / 1000,
    )


def all_versions(connection: Connection, name: str) -> list[Version]:
    """Return every version, newest first, aliases included."""
    with connection.doing(f"listing the versions of '{name}' in MLflow"):
        aliases = _aliases(connection, name)
        entities = list(_search(connection, f"name = '{checked_name(name)}'"))
    # A search gives versions without their aliases; the registered model has them all.
    by_version: dict[str, list[str]] = {}
    for alias, version in aliases.items():
        by_version.setdefault(version, []).append(alias)
    versions = [_with_aliases(version_of(entity), by_version) for entity in entities]
    return sorted(versions, key=lambda version: -int(version.version))


def _with_aliases(version: Version, by_version: Mapping[str, list[str]]) -> Version:
    return replace(version, aliases=tuple(sorted(by_version.get(version.version, []))))


def _search(connection: Connection, query: str) -> Iterator["ModelVersion"]:
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
            str(alias): str(version)
            for alias, version in connection.client.get_registered_model(
                checked_name(name)
            ).aliases.items()
        }
    except MlflowException as exc:
        if exc.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise BadInput(
            f"looking for model '{name}'", "MLflow has none of this name", "see: weighbridge models"
        ) from exc


def get(connection: Connection, name: str, version: str) -> Version:
    """Return one version by its number.

    Raises:
        BadInput: there is none.
    """
    from mlflow.exceptions import MlflowException

    with connection.doing(f"looking for version {version} of '{name}' in MLflow"):
        try:
            return version_of(connection.client.get_model_version(checked_name(name), version))
        except MlflowException as exc:
            if exc.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            doing = f"looking for version {version} of '{name}'"
            raise BadInput(
                doing, "MLflow has no such version", f"see: weighbridge models {name}"
            ) from exc


def by_alias(connection: Connection, name: str, alias: str) -> Version | None:
    """Return the version an alias names now; None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    with connection.doing(f"reading '{name}@{alias}' in MLflow"):
        try:
            return version_of(
                connection.client.get_model_version_by_alias(checked_name(name), alias)
            )
        except MlflowException as exc:
            # MLflow says the first of a model that is not there, the second of an alias.
            if exc.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None


def misspelt_champions(connection: Connection, name: str) -> dict[str, str]:
    """Return aliases that look as if they were meant to be `champion`, and what they name."""
    with connection.doing(f"reading the aliases of '{name}' in MLflow"):
        aliases = _aliases(connection, name)
    return {
        alias: version
        for alias, version in aliases.items()
        if is_misspelt_champion(alias) and version != aliases.get(CHAMPION)
    }


def is_misspelt_champion(alias: str) -> bool:
    """Whether an alias is not `champion`, and looks as if it was meant to be."""
    letters = "".join(filter(str.isalpha, alias.casefold()))
    near = difflib.get_close_matches(letters, [CHAMPION], cutoff=_NEAR)
    return alias != CHAMPION and (bool(near) or letters == "champ")


def set_alias(connection: Connection, version: Version, alias: str) -> None:
    """Let an alias name this version."""
    with connection.doing(f"setting '{version.name}@{alias}' in MLflow"):
        connection.announced().set_registered_model_alias(version.name, alias, version.version)


def delete_alias(connection: Connection, name: str, alias: str) -> None:
    """Let an alias name nothing."""
    with connection.doing(f"deleting '{name}@{alias}' in MLflow"):
        connection.announced().delete_registered_model_alias(name, alias)


def tag(connection: Connection, version: Version, tags: Mapping[str, str]) -> None:
    """Set tags on a version; empty values are left out."""
    with connection.doing(f"tagging version {version.version} of '{version.name}' in MLflow"):
        for key, value in tags.items():
            if value and version.tags.get(key) != value:
                # MLflow has no call for several at once.
                connection.client.set_model_version_tag(
                    version.name, version.version, key, value[:MAX_TAG]
                )


def lineage(connection: Connection, version: Version) -> list[Version]:
    """Return the chain a version was made through, base first, itself last."""
    chain = [version]
    while chain[0].parent and len(chain) < _LONGEST_LINEAGE:
        chain.insert(0, get(connection, version.name, chain[0].parent))
    return chain


def restore(connection: Connection, version: Version, store: Store) -> Artifact:
    """Bring a version's artifact back into the store, and prove its digest.

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
        # The store computes the digest anew: what MLflow kept may have been changed there.
        artifact = store.add(scratch / "files", cast(Format, version.format), origin)
    if artifact.digest != version.digest:
        store.remove(artifact.digest)
        raise Unavailable(
            doing, f"its files have the digest {artifact.digest}, registered is {version.digest}"
        )
    return artifact
