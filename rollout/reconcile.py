"""Make the actual state equal the desired one: the version that alias `champion` names serves.

Where it can't, the version before goes on serving. The alias is read inside the target's lock, so
bursts, duplicates and reordered hints all end in the newest version, deployed once. What a killed
process left is resolved first, whoever comes next.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, Registry, Version
from weighbridge.rollout import operator_commands
from weighbridge.rollout.champion import (
    BENTO,
    BENTO_DIGEST,
    Champion,
    alias_warning,
    as_candidate,
    built_release,
    find_measured,
)
from weighbridge.rollout.deploy_args import read_deploy_args

# `recover` belongs to what the deployer takes this module for.
from weighbridge.rollout.interrupted_rollouts import recover as recover
from weighbridge.rollout.interrupted_rollouts import repair, resolve_interrupted
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.rollout import Rollout
from weighbridge.rollout.state import TargetState, home_records, read_state, traffic_shares
from weighbridge.serving.targets.base import Release, Revision
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.package import PackageArgs, package

logger = logging.getLogger(__name__)

ROLLBACK = "rollback"
ALIAS_POLL = 1.0
"""Seconds between two looks at the alias while a rollout goes on."""


@dataclass(frozen=True)
class ReconcileResult:
    """What one reconciliation came to."""

    action: Literal["nothing", "deployed", "failed", "kept", "interrupted"]
    """nothing: the desired version served already. kept: it can't be tried (now). failed: it was
    tried, and what served before serves again.
    """
    detail: str
    version: str
    """That serves now; empty for none."""
    tried: str = ""
    """Version that was to serve; empty where it served already, or none is desired."""
    is_taken_back: bool = False
    """Of one that failed: a person wanted it so."""


def managed_target_of(binding: Binding, workspace: Workspace) -> ManagedTarget:
    """Return the target that a model is bound to, with the arguments in force.

    Those are the binding's, unless later ones are written down: a binding that was read a moment
    ago, or from an MLflow that was not told yet, never brings an earlier address back.

    Raises:
        BadInput: the arguments are not understood any more, or would leave alone what serves.
        Unavailable: the place of the target's records does not answer.
    """
    known = read_state(home_records(binding.target, workspace.settings.home), Revision)
    deploy = _latest_arguments(known, binding)
    writer = known.written_by if deploy is known.deploy_args else binding.written_by
    args = read_deploy_args(binding.target, deploy, writer)
    managed = ManagedTarget(binding.target, args, workspace)
    _check_not_moved(managed, known)
    # Another home may have deployed there since.
    return managed.by(_latest_arguments(read_state(managed.records, Revision), binding, deploy))


def _latest_arguments(
    state: TargetState[Any], binding: Binding, deploy: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the arguments that a state has, where they are later than the binding's; else those,
    or what is given in their place.
    """
    is_later = state.deploy_args and state.deploy_args_since > binding.since
    return state.deploy_args if is_later else deploy or binding.deploy


def _check_not_moved(managed: ManagedTarget, known: TargetState[Any]) -> None:
    """Raise BadInput where a version serves by arguments by which its records are elsewhere."""
    before = known.deploy_args
    if not before or before.get("target") == managed.args.target.model_dump(mode="json"):
        return
    try:
        earlier = replace(managed, args=read_deploy_args(managed.name, before))
    except BadInput:
        return  # of an older release: where its records were is not known any more
    if earlier.records.place != managed.records.place and traffic_shares(earlier.load_state()):
        earlier.by(managed.args.model_dump(mode="json"))  # raises


def _with_arguments_in_force(managed: ManagedTarget, binding: Binding) -> ManagedTarget:
    """Return the target, whose lock is held, with the arguments in force once they are written."""
    managed = managed.by(_latest_arguments(managed.load_state(), binding))
    managed.adopt(binding.since)
    return managed


def reconcile(
    binding: Binding, registry: Registry, workspace: Workspace, trigger: str, *, force: bool = False
) -> ReconcileResult:
    """Serve the version that the alias names now, if it does not serve yet.

    Args:
        binding: the target, and the model whose alias is read.
        registry: where the alias is.
        workspace: this installation's files.
        trigger: what the ledger says asked for it.
        force: whether a release that failed before is tried again.

    Returns:
        What it came to. A version that does not hold is a result as well, not an exception.

    Raises:
        BadInput: the target's address belongs to somebody else.
        Unavailable: MLflow does not answer; what serves goes on.
    """
    with managed_target_of(binding, workspace).lock() as locked:
        # Inside the lock, and before anything is routed by them.
        managed = _with_arguments_in_force(locked, binding)
        resolve_interrupted(managed)
        repair(managed)
        # In any case: an attempt that failed is history too, and so is what was just resolved.
        try:
            return _reconcile_locked(managed, binding, registry, trigger, force)
        finally:
            _mirror_ledger(managed, registry)


def failed_at(binding: Binding, workspace: Workspace) -> float:
    """Return the Unix time of the last failure that keeps its release from being tried; else 0."""
    failure = managed_target_of(binding, workspace).load_state().last_failure
    return failure.at if failure else 0.0


def needs(
    binding: Binding, registry: Registry, workspace: Workspace, *, force: bool = False
) -> bool:
    """Whether `reconcile` would try something: a look that takes no lock."""
    # What it says may be out of date at once; `reconcile` looks again inside the lock.
    managed = managed_target_of(binding, workspace)
    state = managed.load_state()
    desired = registry.desired_version(binding.model)
    if state.rollout is not None:
        return True
    return (
        desired is not None
        and not _serves(state, desired)
        and _why_not_tried(managed, state, desired, force) is None
    )


def _reconcile_locked(
    managed: ManagedTarget, binding: Binding, registry: Registry, trigger: str, force: bool
) -> ReconcileResult:
    # Again and again while the alias moves on during a rollout.
    while True:
        desired = registry.desired_version(binding.model)
        state = managed.change_state(
            desired_version=desired.version if desired else "",
            alias_warning=_alias_warning(managed, binding, registry),
        )
        serving = state.current.release.version if state.current else ""
        if desired is None:
            return _keep(managed, serving, f"no version of {binding.model} has the alias champion")
        if _serves(state, desired):
            managed.change_state(reason="", last_failure=None)
            operator_commands.forget_move(managed.records, desired.version)
            return ReconcileResult("nothing", f"version {serving} serves already", serving)
        if (why := _why_not_tried(managed, state, desired, force)) is not None:
            return _keep(managed, serving, why, desired.version)
        managed = _with_newest_arguments(managed, binding, registry)
        try:
            release, measurement = _releasable(managed, desired, registry)
            alias = _AliasWatch(binding.model, release.version, registry)
            checked = _checked(trigger, managed, desired)
            stopped = Rollout(managed, release, checked, measurement, alias.superseded).run()
            operator_commands.forget_move(managed.records, desired.version)
        # BadInput goes on to the caller: another version would not make the address free.
        except Unavailable as exc:
            why = f"version {desired.version} can't be served: {exc}"
            return _keep(managed, serving, why, desired.version)
        if stopped is None:
            why = f"version {desired.version} serves"
            return ReconcileResult("deployed", why, desired.version, desired.version)
        if stopped.outcome != "superseded":
            by_person = stopped.outcome == "aborted"
            return ReconcileResult("failed", stopped.why, serving, desired.version, by_person)


def _alias_warning(managed: ManagedTarget, binding: Binding, registry: Registry) -> str:
    """Return, and log once, that an alias does nothing which looks as if it should."""
    warning = alias_warning(registry, binding.model)
    if warning and warning != managed.load_state().alias_warning:
        logger.warning("%s: %s", managed.name, warning)
    return warning


def _checked(trigger: str, managed: ManagedTarget, version: Version) -> str:
    """Return the command that moved the alias to this version, else the trigger that is given.

    MLflow's webhook may come before the command's own call; and whoever calls this can say
    anything, by HTTP or as a parameter of a flow: `rollback`, which skips the canary, is it only
    where `weighbridge rollback` has noted this version beside the target.
    """
    move = operator_commands.read(managed.records).move_to(version.version)
    return move or (trigger if trigger != ROLLBACK else "reconcile")


def _with_newest_arguments(
    managed: ManagedTarget, binding: Binding, registry: Registry
) -> ManagedTarget:
    """Return the target with the arguments in force now.

    They are read after the alias, so that whoever sets them and then moves the alias gets them.
    """
    matching = (
        listed
        for listed in registry.bindings()
        if (listed.target, listed.model) == (binding.target, binding.model)
    )
    return _with_arguments_in_force(managed, next(matching, binding))


def _keep(managed: ManagedTarget, serving: str, why: str, tried: str = "") -> ReconcileResult:
    """Write down why the desired version is not tried; what serves goes on."""
    if managed.load_state().reason != why:
        goes_on = f"; version {serving} goes on serving" if serving else ""
        logger.warning("%s: %s%s", managed.name, why, goes_on)
    managed.change_state(reason=why)
    return ReconcileResult("kept", why, serving, tried)


def _serves(state: TargetState[Any], version: Version) -> bool:
    """Whether this very version serves, with this very Bento (where it has one yet)."""
    if state.current is None or state.rollout is not None:
        return False
    release = state.current.release
    same = (release.name, release.version) == (version.name, version.version)
    return bool(same and version.tags.get(BENTO, release.bento) == release.bento)


def _why_not_tried(
    managed: ManagedTarget, state: TargetState[Any], version: Version, force: bool
) -> str | None:
    """Return why the version is not tried now; None when it is."""
    if operator_commands.read(managed.records).paused:
        return f"the target is paused: `weighbridge resume {managed.name}`"
    failure = state.last_failure
    if force or failure is None or failure.release.version != version.version:
        return None
    is_rebuilt = version.tags.get(BENTO, failure.release.bento) != failure.release.bento
    if is_rebuilt or time.time() >= failure.retry_at:
        return None
    return f"version {version.version} failed: {failure.why}"


class _AliasWatch:
    """Tells whether the alias still names the version that is being rolled out."""

    def __init__(self, model: str, version: str, registry: Registry) -> None:
        self._model, self._version, self._registry = model, version, registry
        # The alias has just been read.
        self._due = time.monotonic() + ALIAS_POLL

    def superseded(self) -> str | None:
        """Return why the version is not desired any more.

        None when it is, when it is not time yet to look, or when MLflow does not answer.
        """
        if time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + ALIAS_POLL
        try:
            desired = self._registry.desired_version(self._model)
        # MLflow may come back before the rollout ends, and the next reconciliation asks again.
        except WeighbridgeError:
            return None
        if desired is None or desired.version == self._version:
            return None
        return f"the alias has moved on to version {desired.version}"


def _releasable(
    managed: ManagedTarget, version: Version, registry: Registry
) -> tuple[Release, Measurement | None]:
    """Return a version as something to serve, and how it was measured.

    Its Bento is built where it has none, or where it is not on this machine any more.

    Raises:
        Unavailable: it has no Bento, and none can be built.
    """
    champion = find_measured(registry, version)
    measurement = champion.measurement if champion else None
    peak = measurement.peak_memory if measurement else 0
    release = built_release(version, peak)
    # It was built, but the store may have been cleaned since, or be another machine's.
    if release is not None and managed.target.has(release):
        return release, measurement
    candidate = _packable(version, champion, registry, managed.workspace)
    return _packaged(candidate, version, peak, registry, managed.workspace), measurement


def check_servable(
    version: Version, bindings: Sequence[Binding], registry: Registry, workspace: Workspace
) -> None:
    """Check that a version could be served where its model is, before an alias names it.

    Raises:
        BadInput: it could not: nothing can be made of it, or a target's address is taken.
        Unavailable: MLflow does not answer, or a target lacks what it needs.
    """
    targets = [managed_target_of(binding, workspace).target for binding in bindings]
    for target in targets:
        target.check()
    release = built_release(version, 0)
    if release is not None and all(target.has(release) for target in targets):
        return
    try:
        _packable(version, find_measured(registry, version), registry, workspace)
    except Unavailable as exc:
        doing = f"promoting {version.name} {version.version}"
        raise BadInput(doing, exc.wrong, exc.remedy) from exc


def _packable(
    version: Version, champion: Champion | None, registry: Registry, workspace: Workspace
) -> Candidate:
    """Return what a Bento of this version can be built of.

    Raises:
        Unavailable: it was never weighed, or its artifact is lost.
    """
    doing = f"packaging version {version.version}"
    if champion is None:
        remedy = "weigh it: add it to a recipe, or promote a version that was weighed"
        raise Unavailable(doing, "it has no Bento and was never weighed", remedy)
    candidate = as_candidate(champion, registry, workspace)
    if candidate is None:
        raise Unavailable(doing, "its artifact can't be had any more")
    return candidate


def _packaged(
    candidate: Candidate, version: Version, peak: int, registry: Registry, workspace: Workspace
) -> Release:
    lineage = {"recipe": version.tags.get("recipe", ""), "artifact": version.digest}
    packaged = package(candidate, version.name, "", lineage, PackageArgs(), workspace)
    if workspace.shared is not None:
        # As a release's is: whoever starts it may be on another machine, or be a pod.
        workspace.shared.push(packaged.digest, workspace.store)
    registry.tag(version, {BENTO: packaged.tag, BENTO_DIGEST: packaged.digest})
    return packaged.release(version.name, version.version).model_copy(update={"peak_memory": peak})


def _mirror_ledger(managed: ManagedTarget, registry: Registry) -> None:
    """Bring the ledger's new lines into MLflow; where it does not answer, they wait."""
    entries = managed.outbox.unmirrored()
    if not entries:
        return
    try:
        registry.mirror(entries)
        managed.outbox.mirrored(len(entries), keep=managed.load_state().rollout is not None)
    except WeighbridgeError as exc:
        logger.warning("the ledger of %s waits: %s", managed.name, exc)
