"""After a crash: finish or roll back the rollout that a killed process left, and repair the rest.

The next process that takes a target's lock does so first, whatever it came for.
"""

import logging

from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.workspace import Workspace
from weighbridge.rollout.managed_target import ManagedTarget, open_target
from weighbridge.rollout.state import known_targets
from weighbridge.serving.targets.base import Revision

logger = logging.getLogger(__name__)


def recover(workspace: Workspace) -> None:
    """Resolve what killed processes left at every target, and have what served serve again.

    Needs no MLflow.
    """
    for name in known_targets(workspace.settings.home):
        try:
            _recover_target(name, workspace)
        # One that cannot be recovered must not keep the others down.
        except (WeighbridgeError, OSError) as exc:
            logger.warning("%s: %s", name, exc)


def _recover_target(name: str, workspace: Workspace) -> None:
    managed = open_target(name, workspace)
    if managed is not None:
        with managed.lock() as locked:
            resolve_interrupted(locked)
            repair(locked)


def resolve_interrupted(managed: ManagedTarget) -> None:
    """Finish the rollout that a killed process left, or roll it back.

    It is finished where it was committed: clients may have been answered by the new version
    alone since then.
    """
    rollout = managed.load_state().rollout
    for unended in managed.outbox.unended():
        # Killed after the ledger's line `begin` and before the state: nothing was started.
        if rollout is None or unended != rollout.id:
            managed.outbox.write(
                unended,
                "end",
                outcome="interrupted",
                verdict="error",
                detail="interrupted at `begin`",
            )
    if rollout is None:
        return
    release = rollout.next.release
    logger.warning("%s: resolving an interrupted rollout of %s", managed.name, release.bento)
    if rollout.committed:
        # It gets all traffic in a moment, and after a reboot it does not run.
        _keep_running(managed, rollout.next)
        managed.finish_rollout({}, "finished after an interruption")
    else:
        if rollout.previous is not None and not rollout.swap:
            _keep_running(managed, rollout.previous)
        managed.roll_back("interrupted", "error", f"interrupted at `{rollout.phase}`", {})


def repair(managed: ManagedTarget) -> None:
    """Make two things true again, whatever happened.

    What gets traffic runs, and what runs is known to the state.
    """
    state = managed.load_state()
    known_revisions = {draining.revision.name for draining in state.draining}
    if state.current is not None:
        known_revisions.add(state.current.name)
        _keep_running(managed, state.current)
        if not managed.is_routed():
            managed.route()
    for name in managed.target.running() - known_revisions:
        logger.warning("%s: %s runs and nobody knows why: it is stopped", managed.name, name)
        managed.target.stop_named(name)
    managed.stop_drained()


def _keep_running(managed: ManagedTarget, revision: Revision) -> None:
    """Start what is about to get traffic, if it does not run: after a reboot nothing does."""
    if not managed.target.is_healthy(revision):
        managed.target.start(revision)
