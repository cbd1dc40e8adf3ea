"""Move the alias `champion`, and follow what comes of it.

The rollout is done by the deployer where one runs, else in this process.
"""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput, GateFailed, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, Registry, Version
from weighbridge.registry.ledger import RolloutRecord, record_of
from weighbridge.rollout import operator_commands, reconcile, target_operations, target_status
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.operator_commands import Command, Move
from weighbridge.rollout.reconcile import ReconcileResult
from weighbridge.rollout.state import known_targets

POLL = 0.2
"""Seconds between two looks at how far a rollout is."""
IDLE_SECONDS = 10.0
"""Seconds after which a deployer that was woken and does nothing has nothing to do."""
SILENT_SECONDS = 60.0
"""Seconds without an answer after which the deployer is given up."""

OnProgress = Callable[[str], None]
"""Takes a sentence on how far it is."""


@dataclass(frozen=True)
class Promotion:
    """A version that has just been made champion, and where it shall serve."""

    version: Version
    bindings: list[Binding]
    trigger: Move
    at: float

    def wake(self, workspace: Workspace) -> bool:
        """Wake the deployer for every target; return whether one runs."""
        return all(
            service_addresses.wake_deployer(workspace.settings.home, binding.target, self.trigger)
            for binding in self.bindings
        )

    def follow(self, workspace: Workspace, *, now: bool, on_progress: OnProgress) -> None:
        """Wait until it serves at every one of its targets.

        Args:
            workspace: this installation's files.
            now: whether the steps of a rollout are skipped.
            on_progress: called again and again with how far each target is.

        Raises:
            GateFailed: it does not hold; what served before goes on serving.
            Unavailable: MLflow does not answer, or the deployer no longer does.
        """
        follow_one = _follow_deployer if self.wake(workspace) else _reconcile_here
        for binding in self.bindings:
            follower = Follower(self, binding.target, workspace, now, on_progress)
            result = follow_one(follower, binding)
            if result.action not in ("nothing", "deployed"):
                goes_on = f"version {result.version} goes on serving" if result.version else ""
                doing = f"serving {self.version.name} {self.version.version} at {binding.target}"
                raise GateFailed(doing, result.detail, goes_on)


@dataclass(frozen=True)
class Follower:
    """Tells how far a promotion is at one target, and hurries it where that is wanted."""

    promotion: Promotion
    target: str
    workspace: Workspace
    now: bool
    on_progress: OnProgress

    def look(self) -> None:
        """Tell how far the rollout is now; tell nothing once it serves."""
        version = self.promotion.version.version
        # Not asked: several looks a second would be load on what is being judged.
        statuses = target_status.status(self.workspace, ask=False)
        status = next((status for status in statuses if status.target == self.target), None)
        serving = status.serving if status else None
        if status is not None and not status.trying and serving and serving.version == version:
            return
        if status is None or status.trying != version:
            self.on_progress(f"{self.target}: waiting for the rollout of version {version}")
            return
        if self.now:
            target_operations.command(self.target, "now", self.workspace)
        share = f", {status.share} % of new requests" if status.share else ""
        paused = ", paused" if status.paused else ""
        waits = f" ({status.waits_for})" if status.waits_for else ""
        self.on_progress(f"{self.target}: version {version}: {status.phase}{share}{paused}{waits}")


def promote(name: str, which: str, workspace: Workspace) -> Promotion:
    """Make a version, given by number or alias, the champion.

    Raises:
        BadInput: there is no such version, or it can't be served; the alias stays where it is.
        Unavailable: MLflow does not answer.
    """
    # The time before the alias moves: a state that is written later knows of it.
    registry, at = Registry.connect(workspace.settings), time.time()
    version = registry.version(name, which)
    return _promote(version, "promote", at, registry, workspace)


def rollback(target: str, workspace: Workspace) -> Promotion:
    """Make the version before the champion again, whatever goes on at the target.

    Raises:
        BadInput: there is no version before, or no model is served at this target.
        Unavailable: MLflow does not answer.
    """
    number = target_operations.rollback_version(target, workspace)
    registry, at = Registry.connect(workspace.settings), time.time()
    binding = registry.binding(target)
    if binding is None:
        raise BadInput(
            f"rolling back '{target}'",
            "no model claims this target in MLflow",
            "run its recipe again",
        )
    version = registry.version(binding.model, number)
    promotion = _promote(version, "rollback", at, registry, workspace)
    # A target that was paused would not go back, and whoever asks for this wants it now.
    target_operations.command(target, "resume", workspace)
    return promotion


def _promote(
    version: Version, trigger: Move, at: float, registry: Registry, workspace: Workspace
) -> Promotion:
    bindings = _bindings_of(version.name, registry)
    reconcile.check_servable(version, bindings, registry, workspace)
    # Before the alias moves: MLflow's webhook may be faster than this process.
    for binding in bindings:
        records = reconcile.managed_target_of(binding, workspace).records
        operator_commands.note_move(records, version.version, trigger)
    registry.promote(version)
    return Promotion(version, bindings, trigger, at)


def give_command(target: str, command: Command, workspace: Workspace) -> str:
    """Give the rollout at a target a command, and return a sentence on what that comes to."""
    consequence = target_operations.command(target, command, workspace)
    if command == "resume":
        service_addresses.wake_deployer(workspace.settings.home, target, "resume")
    return consequence


def history(target: str, workspace: Workspace, limit: int) -> list[RolloutRecord]:
    """Return the rollouts at a target, newest first.

    MLflow's, and what its ledger has not been told yet.
    """
    registry = Registry.connect(workspace.settings)
    rollouts = {rollout.id: rollout for rollout in registry.history(target, limit)}
    entries = []
    if target in known_targets(workspace.settings.home):
        entries = target_operations.find_target(target, workspace).outbox.unmirrored()
    for rollout in {entry.rollout for entry in entries}:
        mirrored = rollouts[rollout].events if rollout in rollouts else ()
        rollouts[rollout] = record_of(
            [*mirrored, *(entry for entry in entries if entry.rollout == rollout)]
        )
    if not rollouts and registry.binding(target) is None:
        target_operations.find_target(target, workspace)  # raises where nobody knows the target
    return sorted(rollouts.values(), key=lambda rollout: -rollout.began)[:limit]


def _bindings_of(model: str, registry: Registry) -> list[Binding]:
    return [binding for binding in registry.bindings() if binding.model == model]


def _reconcile_here(follower: Follower, binding: Binding) -> ReconcileResult:
    """Roll out in this process, on a thread of its own, so that progress can be told meanwhile."""
    workspace, trigger = follower.workspace, follower.promotion.trigger

    def work() -> ReconcileResult:
        registry = Registry.connect(workspace.settings)
        return reconcile.reconcile(binding, registry, workspace, trigger, force=True)

    with ThreadPoolExecutor(1) as pool:
        future: Future[ReconcileResult] = pool.submit(work)
        try:
            while not future.done():
                follower.look()
                with contextlib.suppress(TimeoutError):
                    future.result(POLL)
        except KeyboardInterrupt:
            # Ctrl-C reaches this thread alone: the other one is told to take the rollout back.
            target_operations.command(binding.target, "abort", workspace)
            raise
        return future.result()


def _follow_deployer(follower: Follower, binding: Binding) -> ReconcileResult:
    """Wait until the deployer, which was woken, has nothing to do any more at this target."""
    woken = last_heard = time.monotonic()
    while True:
        follower.look()
        with contextlib.suppress(BadInput):  # nothing was ever deployed there
            managed = target_operations.find_target(binding.target, follower.workspace)
            had_time = time.monotonic() - woken > IDLE_SECONDS
            result = _result_if_settled(managed, follower.promotion, had_time)
            if result is not None:
                return result
        if _deployer_answers(follower.workspace):
            last_heard = time.monotonic()
        elif time.monotonic() - last_heard > SILENT_SECONDS:
            raise Unavailable(
                "waiting for the deployer", "it does not answer", "see: weighbridge status"
            )
        time.sleep(POLL)


def _result_if_settled(
    managed: ManagedTarget, promotion: Promotion, had_time: bool
) -> ReconcileResult | None:
    """Return what the target's state comes to; None while somebody works on it, or is about to."""
    # Read first: if the state changes in between, it counts as older than it is, and is read again.
    changed_at = managed.changed_at
    state = managed.load_state_if_idle()
    if state is None or state.rollout is not None:
        return None
    version, current = promotion.version, state.current
    serving = current.release.version if current else ""
    if current and (current.release.name, serving) == (version.name, version.version):
        return ReconcileResult("nothing", "", serving)
    is_written = changed_at >= promotion.at
    if not had_time and not (is_written and state.desired_version == version.version):
        return None
    if state.desired_version and state.desired_version != version.version:
        moved_on = f"the alias has moved on to version {state.desired_version}"
        idle = "the deployer has not begun it; see: weighbridge logs deployer"
        return ReconcileResult("kept", moved_on if is_written else idle, serving)
    failure = state.last_failure
    if failure is not None and failure.release.version == version.version:
        return ReconcileResult("failed", failure.why, serving)
    return ReconcileResult("kept", state.reason or "the deployer leaves it alone", serving)


def _deployer_answers(workspace: Workspace) -> bool:
    ports = service_addresses.read(workspace.settings.home)
    return ports is not None and service_addresses.answers(f"{ports.url('deployer')}/health")
