"""What people ask of a target: how it is, what it should do about a rollout, to go down."""

from pydantic import BaseModel, Field

from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import commands
from weighbridge.rollout.managed_target import ManagedTarget, known_targets, open_target
from weighbridge.serving.targets.base import Release, Serving


class TargetStatus(BaseModel):
    """A target as people ask for it."""

    target: str
    address: str
    healthy: bool
    serving: Release | None = Field(description="The fact.")
    since: float = Field(0.0, description="Unix time at which it began to serve.")
    wish: str = Field("", description="Version that the alias named when it was last read.")
    phase: str = Field("", description="Of a rollout under way; empty for none.")
    rollout: str = Field("", description="Id of that rollout.")
    trying: str = Field("", description="Version that is being rolled out.")
    share: int = Field(0, description="Percent of new requests that it gets.")
    paused: bool = False
    detail: str = Field("", description="Why the fact is not the wish; what drains.")


def settle(target: str, workspace: Workspace) -> bool:
    """Stop what has drained at a target; True when nothing drains any more."""
    managed = known_target(target, workspace)
    with managed.lock():
        return managed.settle()


def known_target(target: str, workspace: Workspace) -> ManagedTarget:
    """Raises BadInput where nothing was ever deployed there."""
    known = known_targets(workspace.settings.home)
    managed = open_target(target, workspace) if target in known else None
    if managed is None:
        remedy = f"known: {', '.join(known)}" if known else "start one with: weighbridge run RECIPE"
        raise BadInput(f"looking for target '{target}'", "there is none of that name", remedy)
    return managed


def rollback_version(target: str, workspace: Workspace) -> str:
    """The version to go back to: the one before the one that serves, or the one that serves while
    another is tried.

    Raises:
        BadInput: there is none.
    """
    record = known_target(target, workspace).load()
    if record.current is not None and (
        record.rollout is not None or record.wish != record.current.release.version
    ):
        return str(record.current.release.version)
    if not record.kept:
        raise BadInput(
            f"rolling back '{target}'", "no version served there before", "see its history"
        )
    return str(record.kept[0].version)


def order(target: str, verb: commands.Command, workspace: Workspace) -> str:
    """Tell the rollout at a target something; says what that comes to. The same again changes
    nothing.
    """
    managed = known_target(target, workspace)
    under = managed.load().rollout
    commands.issue(managed.folder, verb, under.id if under else "")
    if verb in ("pause", "resume"):
        return f"{target} is {'paused: no rollout takes a step until `resume`' if verb == 'pause' else 'not paused'}"
    if under is None:
        return f"nothing is being rolled out to {target}"
    doing = "goes on at once" if verb == "now" else "is taken back"
    return f"the rollout of version {under.next.release.version} to {target} {doing}"


def status(workspace: Workspace) -> list[TargetStatus]:
    """Every target of this machine, from its record and its address; no MLflow."""
    return [
        _status(managed)
        for name in known_targets(workspace.settings.home)
        if (managed := open_target(name, workspace))
    ]


def down(workspace: Workspace) -> list[str]:
    """Stop what serves at every target and leave no process of it; returns their names."""
    stopped = []
    for name in known_targets(workspace.settings.home):
        managed = open_target(name, workspace)
        if managed is not None:
            with managed.lock():
                stopped += [name] if managed.target.running() else []
                managed.down()
    return stopped


def credentials(managed: ManagedTarget) -> dict[str, str]:
    """Headers that a request of ours to the target's address must carry."""
    return managed.target.credentials()


def serving(managed: ManagedTarget) -> Serving:
    """What serves at a site, as its address answers."""
    record = managed.load()
    current = record.current
    healthy = current is not None and managed.target.is_healthy(current)
    return Serving(
        release=current.release if current else None,
        address=managed.target.address,
        healthy=healthy,
        detail=record.note,
        since=current.since if current else 0.0,
    )


def _status(managed: ManagedTarget) -> TargetStatus:
    record = managed.load()
    under, seen = record.rollout, serving(managed)
    draining = [one.revision.name for one in record.retiring]
    words = [record.note, f"{', '.join(draining)} drains" if draining else ""]
    return TargetStatus(
        target=managed.name,
        address=seen.address,
        healthy=seen.healthy,
        serving=seen.release,
        since=seen.since,
        wish=record.wish,
        phase=under.phase if under else "",
        rollout=under.id if under else "",
        trying=under.next.release.version if under else "",
        share=under.share if under else 0,
        paused=commands.read(managed.folder).paused,
        detail="; ".join(word for word in words if word),
    )
