"""How the targets of this machine are: what should serve, what does, and what is being tried."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, computed_field

from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import operator_commands
from weighbridge.rollout.engine_watch import last_restart
from weighbridge.rollout.managed_target import ManagedTarget, open_target
from weighbridge.rollout.state import TargetState, known_targets
from weighbridge.serving.targets.base import Release, Serving


class TargetStatus(BaseModel):
    """A target, as `weighbridge status` shows it."""

    target: str
    address: str
    healthy: bool = Field(description="Clients of the address get its answers.")
    serving: Release | None = Field(description="The actual state: what serves.")
    since: float = Field(0.0, description="Unix time at which it began to serve.")
    running_since: float = Field(
        0.0, description="Unix time at which its process started; 0: it does not run."
    )
    restarted: float = Field(
        0.0, description="Unix time at which it was started again because it hung; 0: never."
    )
    restarts: int = Field(0, description="How often in a row.")
    desired_version: str = Field(
        "", description="Version that the alias named when it was last read."
    )
    phase: str = Field("", description="Of a rollout under way; empty for none.")
    rollout: str = Field("", description="Id of that rollout.")
    trying: str = Field("", description="Version that is being rolled out.")
    share: int = Field(0, description="Percent of new requests that it gets.")
    waits_for: str = Field("", description="What the step of the rollout waits for.")
    paused: bool = False
    detail: str = Field(
        "", description="Why it is not the desired version; what drains; aliases that do nothing."
    )
    deployer_error: str = Field(
        "", description="What the deployer's last look at it ended in; empty: it ended well."
    )
    deployer_error_at: float = Field(0.0, description="Unix time at which that look ended.")

    # mypy knows no decorator above `property`; pydantic's manual gives this way.
    @computed_field(  # type: ignore[prop-decorator]
        description="The same as `desired_version`: scripts read it by this older name."
    )
    @property
    def wish(self) -> str:
        return self.desired_version


def status(
    workspace: Workspace, *, ask: bool = True, deployer: Mapping[str, Any] | None = None
) -> list[TargetStatus]:
    """Return how every target of this machine is, from its state and its address; no MLflow.

    Args:
        workspace: this installation's files.
        ask: whether what serves is asked as well; else only the files are read.
        deployer: what the deployer says of itself and its targets; None where nobody knows.
    """
    # The deployer has an environment of its own: what it lacks there can't be seen from here.
    errors = _deployers_errors(deployer or {})
    statuses = []
    for name in sorted({*known_targets(workspace.settings.home), *errors}):
        found = _status_if_expected(name, workspace, ask=ask, expected=name in errors)
        if found is not None:
            statuses.append(found.model_copy(update=errors.get(name)))
    return statuses


def _status_if_expected(
    name: str, workspace: Workspace, *, ask: bool, expected: bool
) -> TargetStatus | None:
    """Return how a target is; None where nothing was ever to serve, unless it is expected."""
    managed = open_target(name, workspace)
    try:
        if managed is not None and (expected or _was_asked_for(managed)):
            return status_of(managed, ask=ask)
    # A cluster that does not answer must not hide what serves elsewhere.
    except Unavailable as exc:
        return _unknown(name, str(exc))
    return _unknown(name, "") if expected else None


def _deployers_errors(deployer: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Return the fields about it of every target where the deployer's last look went wrong."""
    return {
        name: {"deployer_error": look["detail"], "deployer_error_at": look["at"]}
        for name, look in deployer.get("targets", {}).items()
        if look.get("action") == "error"
    }


def _unknown(name: str, why: str) -> TargetStatus:
    return TargetStatus(target=name, address="", healthy=False, serving=None, detail=why)


def _was_asked_for(managed: ManagedTarget) -> bool:
    """Whether a version was to serve there: an address may wait for a first promotion."""
    state = managed.load_state()
    return any((state.current, state.rollout, state.last_failure, state.reason))


def status_of(managed: ManagedTarget, *, ask: bool) -> TargetStatus:
    """Return how one target is."""
    state, serving = managed.load_state(), serving_at(managed, ask=ask)
    rollout, restart = state.rollout, last_restart(managed.records)
    asked = state.current if ask else None
    if restart and state.current and restart.revision != state.current.name:
        restart = None  # of a version that served earlier
    draining = ", ".join(entry.revision.name for entry in state.draining)
    remarks = [
        state.reason,
        rollout.shown if rollout else "",
        f"waits: {rollout.waits_for}" if rollout and rollout.waits_for else "",
        f"{draining} drains" if draining else "",
        managed.target.problem() if ask else "",
        state.alias_warning,
    ]
    return TargetStatus(
        target=managed.name,
        address=serving.address,
        healthy=serving.healthy,
        serving=serving.release,
        since=serving.since,
        running_since=managed.target.running_since(asked) if asked else 0.0,
        restarted=restart.at if restart else 0.0,
        restarts=restart.count if restart else 0,
        desired_version=state.desired_version,
        phase=rollout.phase if rollout else "",
        rollout=rollout.id if rollout else "",
        trying=rollout.next.release.version if rollout else "",
        share=rollout.share if rollout else 0,
        waits_for=rollout.waits_for if rollout else "",
        paused=operator_commands.read(managed.records).paused,
        detail="; ".join(remark for remark in remarks if remark),
    )


def _asked_by_clients(state: TargetState[Any]) -> list[Any]:
    """Return what serves, and what a rollout has given a share: without a gateway all of it."""
    rollout = state.rollout
    new = rollout.next if rollout and rollout.share else None
    return [revision for revision in (state.current, new) if revision is not None]


def serving_at(managed: ManagedTarget, *, ask: bool = True) -> Serving:
    """Return what serves at a target, and where it is asked, whether clients get its answers."""
    state = managed.load_state()
    current = state.current
    return Serving(
        release=current.release if current else None,
        address=managed.target.address,
        healthy=ask and any(map(managed.target.answers_clients, _asked_by_clients(state))),
        detail=state.reason,
        since=current.since if current else 0.0,
    )
