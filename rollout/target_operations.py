"""What people and flows do at a target: steer its rollout, go back, let it drain."""

from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry
from weighbridge.rollout import operator_commands
from weighbridge.rollout.managed_target import ManagedTarget, open_target
from weighbridge.rollout.reconcile import managed_target_of
from weighbridge.rollout.state import known_targets


def find_target(name: str, workspace: Workspace) -> ManagedTarget:
    """Return the target of this name. Raises BadInput where nothing was ever deployed there."""
    names = known_targets(workspace.settings.home)
    known = name in names
    managed = open_target(name, workspace) if known else _of_another_home(name, workspace)
    if managed is None:
        remedy = f"known: {', '.join(names)}" if names else "start one with: weighbridge run RECIPE"
        raise BadInput(f"looking for target '{name}'", "there is none of that name", remedy)
    return managed


def _of_another_home(name: str, workspace: Workspace) -> ManagedTarget | None:
    """Return a target of which MLflow knows, and whose records another home began; else None."""
    if not (workspace.settings.tracking_uri or workspace.settings.postgresql_url("psycopg2")):
        return None  # nobody else has written into this home's own database
    binding = Registry.connect(workspace.settings).binding(name)
    managed = managed_target_of(binding, workspace) if binding else None
    return managed if managed and managed.load_state().deploy_args else None


def command(target: str, command: operator_commands.Command, workspace: Workspace) -> str:
    """Give the rollout at a target a command, and return a sentence on what that comes to.

    The same command again changes nothing.
    """
    managed = find_target(target, workspace)
    rollout = managed.load_state().rollout
    # Without the lock: whoever rolls out holds it until the rollout ends.
    operator_commands.issue(managed.records, command, rollout.id if rollout else "")
    if command == "pause":
        return f"{target} is paused: no rollout takes a step until `resume`"
    if command == "resume":
        return f"{target} is not paused"
    if rollout is None:
        return f"nothing is being rolled out to {target}"
    consequence = "goes on at once" if command == "now" else "is rolled back"
    return f"the rollout of version {rollout.next.release.version} to {target} {consequence}"


def rollback_version(target: str, workspace: Workspace) -> str:
    """Return the version to go back to at this target. Raises BadInput: there is none."""
    return version_before(find_target(target, workspace))


def version_before(managed: ManagedTarget) -> str:
    """Return the version to go back to.

    That is the one before the one that serves. While another version is tried, or is desired and
    does not serve, it is the one that serves.

    Raises:
        BadInput: there is none.
    """
    state = managed.load_state()
    if state.current is not None:
        serving = state.current.release.version
        # The alias names a version that is being tried, or that failed: back means to what serves.
        if state.rollout is not None or state.desired_version != serving:
            return str(serving)
    if not state.previous_releases:
        raise BadInput(
            f"rolling back '{managed.name}'", "no version served there before", "see its history"
        )
    return str(state.previous_releases[0].version)


def stop_drained(target: str, workspace: Workspace) -> bool:
    """Stop what has drained at a target; return whether nothing drains any more."""
    managed = find_target(target, workspace)
    with managed.lock() as locked:
        return locked.stop_drained()
