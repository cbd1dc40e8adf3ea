"""Make the fact equal the wish: the version that alias `champion` names serves, or the one before
goes on.

The wish is read inside the target's lock, so bursts, duplicates and reordered hints all end in the
newest version, deployed once. What a killed process left is settled first, whoever comes next.
"""

import logging
import time
from dataclasses import dataclass
from typing import Literal

from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, Registry, Version
from weighbridge.rollout import commands
from weighbridge.rollout.champion import BENTO, BENTO_DIGEST, Champion, as_candidate, find_measured
from weighbridge.rollout.deploy_args import DeployArgs
from weighbridge.rollout.managed_target import (
    ManagedTarget,
    TargetState,
    known_targets,
    mirror_into,
    open_target,
)
from weighbridge.rollout.rollout import Rollout, RolloutStopped
from weighbridge.serving.targets.base import Release
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.package import PackageArgs, package

logger = logging.getLogger("weighbridge.redeploy")

WISH_EVERY = 1.0
"""Seconds between two looks at the alias while a rollout goes on."""


@dataclass(frozen=True)
class Result:
    """What became of a wish."""

    action: Literal["nothing", "deployed", "failed", "kept", "interrupted"]
    """nothing: it served already. kept: the wish can't be tried (now). failed: it was tried."""
    detail: str
    version: str
    """That serves now; empty for none."""


def managed_target_of(binding: Binding, workspace: Workspace) -> ManagedTarget:
    """Raises BadInput where its arguments are no longer understood."""
    try:
        return ManagedTarget(binding.target, DeployArgs.model_validate(binding.deploy), workspace)
    except ValueError as exc:
        raise BadInput(
            f"reading target '{binding.target}'", str(exc), "run its recipe again"
        ) from exc


def reconcile(
    binding: Binding, registry: Registry, workspace: Workspace, trigger: str, *, force: bool = False
) -> Result:
    """Serve the version the alias names now, if it is not served yet.

    With `force` a release is tried again that failed before. Errors of a version end as a result,
    not as an exception.

    Raises:
        BadInput: the target's address belongs to somebody else.
        Unavailable: MLflow does not answer; what serves goes on.
    """
    managed = managed_target_of(binding, workspace)
    with managed.lock():
        managed.recover()
        managed.mend()
        try:
            return _redeploy(managed, binding, registry, trigger, force)
        finally:
            mirror_into(registry, managed)


def failed_at(binding: Binding, workspace: Workspace) -> float:
    """Unix time of the last failure at a target that stands in the way of its release; 0 for none."""
    failed = managed_target_of(binding, workspace).load().failed
    return failed.at if failed else 0.0


def needs(
    binding: Binding, registry: Registry, workspace: Workspace, *, force: bool = False
) -> bool:
    """Whether `reconcile` would try something: a look that takes no lock."""
    managed = managed_target_of(binding, workspace)
    record = managed.load()
    version = registry.wish(binding.model)
    if record.rollout is not None:
        return True
    return (
        version is not None
        and not _serves(record, version)
        and not _left_alone(managed, record, version, force)
    )


def recover(workspace: Workspace) -> None:
    """Settle what killed processes left at every target of this machine, and have what serves
    serve. No MLflow.
    """
    for name in known_targets(workspace.settings.home):
        managed = open_target(name, workspace)
        if managed is not None:
            with managed.lock():
                managed.recover()
                managed.mend()


def _redeploy(
    managed: ManagedTarget, binding: Binding, registry: Registry, trigger: str, force: bool
) -> Result:
    while True:
        version = registry.wish(binding.model)
        record = managed.change(wish=version.version if version else "")
        now = record.current.release.version if record.current else ""
        if version is None:
            return _kept(managed, now, f"no version of {binding.model} has the alias champion")
        if _serves(record, version):
            managed.change(note="", failed=None)
            return Result("nothing", f"version {now} serves already", now)
        if why := _left_alone(managed, record, version, force):
            return _kept(managed, now, why)
        managed = _as_claimed(managed, binding, registry)
        try:
            release, measurement = _releasable(managed, version, registry)
            stopped = _roll_out(managed, release, measurement, binding, registry, trigger)
        except Unavailable as exc:
            return _kept(managed, now, f"version {version.version} can't be served: {exc}")
        if stopped is None:
            return Result("deployed", f"version {version.version} serves", version.version)
        if stopped.outcome != "superseded":
            return Result("failed", stopped.why, now)


def _as_claimed(managed: ManagedTarget, binding: Binding, registry: Registry) -> ManagedTarget:
    """With the arguments in force now: read after the alias, so that whoever sets them and then
    moves it gets them.
    """
    claims = (
        found
        for found in registry.bindings()
        if (found.target, found.model) == (binding.target, binding.model)
    )
    return managed_target_of(next(claims, binding), managed.workspace)


def _kept(managed: ManagedTarget, now: str, why: str) -> Result:
    if managed.load().note != why:
        logger.warning(
            "%s: %s%s", managed.name, why, f"; version {now} goes on serving" if now else ""
        )
    managed.change(note=why)
    return Result("kept", why, now)


def _serves(record: TargetState, version: Version) -> bool:  # type: ignore[type-arg]
    """Whether the fact is this very version with this very Bento (where it has one yet)."""
    if record.current is None or record.rollout is not None:
        return False
    release = record.current.release
    same = (release.name, release.version) == (version.name, version.version)
    return bool(same and version.tags.get(BENTO, release.bento) == release.bento)


def _left_alone(managed: ManagedTarget, record: TargetState, version: Version, force: bool) -> str:  # type: ignore[type-arg]
    """Why this wish is not tried now; empty when it is."""
    if commands.read(managed.folder).paused:
        return f"the target is paused: `weighbridge resume {managed.name}`"
    failed = record.failed
    if force or failed is None or failed.release.version != version.version:
        return ""
    if (
        version.tags.get(BENTO, failed.release.bento) != failed.release.bento
        or time.time() >= failed.retry_at
    ):
        return ""
    return f"version {version.version} failed: {failed.why}"


def _roll_out(
    managed: ManagedTarget,
    release: Release,
    measurement: Measurement | None,
    binding: Binding,
    registry: Registry,
    trigger: str,
) -> RolloutStopped | None:
    wished = _Wish(binding.model, release.version, registry)
    return Rollout(managed, release, trigger, measurement, wished.superseded).run()


class _Wish:
    """Whether the alias still names the version that is being rolled out."""

    def __init__(self, model: str, version: str, registry: Registry) -> None:
        self._model, self._version, self._registry = model, version, registry
        self._due = time.monotonic() + WISH_EVERY

    def superseded(self) -> str:
        """Why it does not; empty when it does, or when MLflow does not answer."""
        if time.monotonic() < self._due:
            return ""
        self._due = time.monotonic() + WISH_EVERY
        try:
            now = self._registry.wish(self._model)
        except WeighbridgeError:
            return ""
        if now is None or now.version == self._version:
            return ""
        return f"the alias has moved on to version {now.version}"


def _releasable(
    managed: ManagedTarget, version: Version, registry: Registry
) -> tuple[Release, Measurement | None]:
    """A version as something to serve; its Bento is built where it has none, or has lost it.

    Raises:
        Unavailable: it can't be.
    """
    champion = find_measured(registry, version)
    measurement = champion.measurement if champion else None
    peak = measurement.peak_memory if measurement else 0
    if BENTO in version.tags:
        tags = version.tags
        release = Release(
            name=version.name,
            version=version.version,
            bento=tags[BENTO],
            digest=tags[BENTO_DIGEST],
            peak_memory=peak,
        )
        if managed.target.has(release):
            return release, measurement
    if champion is None:
        remedy = "weigh it: add it to a recipe, or promote a version that was weighed"
        raise Unavailable(
            f"packaging version {version.version}", "it has no Bento and was never weighed", remedy
        )
    return _packaged(champion, peak, registry, managed.workspace), measurement


def _packaged(champion: Champion, peak: int, registry: Registry, workspace: Workspace) -> Release:
    version = champion.version
    candidate = as_candidate(champion, registry, workspace)
    if candidate is None:
        raise Unavailable(
            f"packaging version {version.version}", "its artifact can't be had any more"
        )
    lineage = {"recipe": version.tags.get("recipe", ""), "artifact": version.digest}
    packaged = package(candidate, version.name, "", lineage, PackageArgs(), workspace)
    registry.tag(version, {BENTO: packaged.tag, BENTO_DIGEST: packaged.digest})
    return packaged.release(version.name, version.version).model_copy(update={"peak_memory": peak})
