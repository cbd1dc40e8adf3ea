"""The version that serves now, as a candidate the others have to beat."""

import logging
from dataclasses import dataclass

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry, Version
from weighbridge.serving.targets.base import Release
from weighbridge.tasks.measurement import Candidate, Measurement, Variant

logger = logging.getLogger(__name__)

BENTO, BENTO_DIGEST = "bento", "bento_digest"
"""Version tags: what serves this version."""
WEIGHING = "weighing"
"""Version tag: fingerprint of the weighing that this version won."""
RELEASE_RUN = "release_run"
"""Version tag: MLflow's id of the release that packaged it."""


@dataclass(frozen=True)
class Champion:
    """A version with alias `champion`, and how it was measured when it won."""

    version: Version
    measurement: Measurement

    @property
    def weighing(self) -> str:
        return self.version.tags.get(WEIGHING, "")


def alias_warning(registry: Registry, name: str) -> str:
    """Return a sentence on aliases of a model that somebody may have meant as `champion`; empty
    where there are none.
    """
    return "; ".join(
        f"alias '{alias}' of {name} (version {version}) does nothing: the alias that is served is "
        f"'champion'; did you mean: weighbridge promote {name} {version}"
        for alias, version in registry.misspelt_champions(name).items()
    )


def find_measured(registry: Registry, version: Version) -> Champion | None:
    """Return a version and how it was measured; None where it never was."""
    document = registry.measurement_of(version)
    return Champion(version, Measurement.model_validate_json(document)) if document else None


def built_release(version: Version, peak_memory: int) -> Release | None:
    """Return the Bento that was built of a version; None where none was."""
    tags = version.tags
    if BENTO not in tags:
        return None
    return Release(
        name=version.name,
        version=version.version,
        bento=tags[BENTO],
        digest=tags[BENTO_DIGEST],
        peak_memory=peak_memory,
    )


def as_candidate(champion: Champion, registry: Registry, workspace: Workspace) -> Candidate | None:
    """Return the champion with its artifact back in the store; None where it is lost."""
    candidate = workspace.store.bind(champion.measurement.candidate)
    if workspace.store.is_whole(candidate.variant.artifact):
        return candidate
    # Weighed on another machine, or cleaned out of the store: MLflow may still have it.
    try:
        artifact = registry.fetch(champion.version, workspace.store)
    except WeighbridgeError as exc:
        logger.warning("champion %s is not weighed again: %s", champion.version.version, exc)
        return None
    variant = Variant(**{**dict(candidate.variant), "artifact": artifact})
    return candidate.model_copy(update={"variant": variant})
