"""Moving the alias `champion` and following what comes of it: in the deployer where one runs, else
in this process.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from filelock import FileLock, Timeout

from weighbridge.core import service_addresses
from weighbridge.core.errors import BadInput, GateFailed, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Binding, Registry, Version
from weighbridge.registry.ledger import RolloutRecord, fold
from weighbridge.rollout import commands, reconcile, target_status
from weighbridge.rollout.managed_target import ManagedTarget, known_targets
from weighbridge.rollout.reconcile import Result

POLL = 0.2
GRACE = 10.0
"""Seconds after which a deployer that was woken and does nothing has nothing to do."""
LOST = 60.0
"""Seconds without an answer after which the deployer is given up."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Promotion:
    """A version that has just been made champion, and where it shall serve."""

    version: Version
    bindings: list[Binding]
    trigger: str
    at: float

    def wake(self, workspace: Workspace) -> bool:
        """Tell the deployer; False where none runs."""
        return all(
            service_addresses.wake(workspace.settings.home, binding.target, self.trigger)
            for binding in self.bindings
        )

    def follow(self, workspace: Workspace, *, now: bool, tell: Tell) -> None:
        """Until it serves at every one of its places; `tell` hears how far each is.

        Raises:
            GateFailed: it does not hold; what served before goes on serving.
            Unavailable: MLflow does not answer, or the deployer no longer does.
        """
        with_deployer = self.wake(workspace)
        for binding in self.bindings:
            outcome = _in_deployer if with_deployer else _in_this_process
            result = outcome(self, binding, workspace, now, tell)
            if result.action not in ("nothing", "deployed"):
                goes_on = f"version {result.version} goes on serving" if result.version else ""
                doing = f"serving {self.version.name} {self.version.version} at {binding.target}"
                raise GateFailed(doing, result.detail, goes_on)


def promote(name: str, which: str, workspace: Workspace) -> Promotion:
    """Make a version, given by number or alias, the champion. Raises BadInput, Unavailable."""
    registry, at = Registry.connect(workspace.settings), time.time()
    version = registry.version(name, which)
    registry.promote(version)
    return Promotion(
        version,
        [binding for binding in registry.bindings() if binding.model == name],
        "promote",
        at,
    )


def rollback(target: str, workspace: Workspace) -> Promotion:
    """Make the version before the champion again, whatever goes on at the target. Raises BadInput,
    Unavailable.
    """
    number = target_status.rollback_version(target, workspace)
    registry, at = Registry.connect(workspace.settings), time.time()
    binding = next((binding for binding in registry.bindings() if binding.target == target), None)
    if binding is None:
        raise BadInput(
            f"rolling back '{target}'",
            "no model claims this target in MLflow",
            "run its recipe again",
        )
    version = registry.version(binding.model, number)
    registry.promote(version)
    target_status.order(target, "resume", workspace)  # whoever asks for this wants it now
    return Promotion(
        version, [one for one in registry.bindings() if one.model == binding.model], "rollback", at
    )


def order(target: str, verb: commands.Command, workspace: Workspace) -> str:
    """Tell the rollout at a target something; says what that comes to."""
    said = target_status.order(target, verb, workspace)
    if verb == "resume":
        service_addresses.wake(workspace.settings.home, target, "resume")
    return said


def history(target: str, workspace: Workspace, limit: int) -> list[RolloutRecord]:
    """The rollouts at a target, newest first: MLflow's, and lines that it has not been told yet."""
    registry = Registry.connect(workspace.settings)
    found = {rollout.id: rollout for rollout in registry.history(target, limit)}
    lines = []
    if target in known_targets(workspace.settings.home):
        lines = target_status.known_target(target, workspace).outbox.unmirrored()
    for rollout in {line.rollout for line in lines}:
        told = found[rollout].events if rollout in found else ()
        found[rollout] = fold([*told, *(line for line in lines if line.rollout == rollout)])
    if not found and not any(binding.target == target for binding in registry.bindings()):
        target_status.known_target(target, workspace)
    return sorted(found.values(), key=lambda rollout: -rollout.began)[:limit]


def _in_this_process(
    moved: Promotion, binding: Binding, workspace: Workspace, now: bool, tell: Tell
) -> Result:
    def work() -> Result:
        registry = Registry.connect(workspace.settings)
        return reconcile.reconcile(binding, registry, workspace, moved.trigger, force=True)

    with ThreadPoolExecutor(1) as pool:
        future: Future[Result] = pool.submit(work)
        try:
            while not future.done():
                _look(binding.target, moved.version.version, workspace, now, tell)
                with contextlib.suppress(TimeoutError):
                    future.result(POLL)
        except KeyboardInterrupt:
            target_status.order(binding.target, "abort", workspace)
            raise
        return future.result()


def _in_deployer(
    moved: Promotion, binding: Binding, workspace: Workspace, now: bool, tell: Tell
) -> Result:
    woken = heard = time.monotonic()
    while True:
        _look(binding.target, moved.version.version, workspace, now, tell)
        with contextlib.suppress(BadInput):  # nothing was ever deployed there
            managed = target_status.known_target(binding.target, workspace)
            if (result := _settled(managed, moved, time.monotonic() - woken > GRACE)) is not None:
                return result
        if _deployer_answers(workspace):
            heard = time.monotonic()
        elif time.monotonic() - heard > LOST:
            raise Unavailable(
                "waiting for the deployer", "it does not answer", "see: weighbridge status"
            )
        time.sleep(POLL)


def _settled(managed: ManagedTarget, moved: Promotion, waited: bool) -> Result | None:
    """What the record says once nobody works on it any more; None while somebody does, or is about
    to.
    """
    changed = (managed.folder / "state.json").stat().st_mtime
    with _held(managed) as free:
        record = managed.load()
    if not free or record.rollout is not None:
        return None
    now = record.current.release.version if record.current else ""
    if (
        record.current is not None
        and record.current.release.name == moved.version.name
        and now == moved.version.version
    ):
        return Result("nothing", "", now)
    if not waited and (changed < moved.at or record.wish != moved.version.version):
        return None
    if record.wish and record.wish != moved.version.version:
        return Result("kept", f"the alias has moved on to version {record.wish}", now)
    failed = record.failed
    if failed is not None and failed.release.version == moved.version.version:
        return Result("failed", failed.why, now)
    return Result("kept", record.note or "the deployer leaves it alone", now)


@contextlib.contextmanager
def _held(managed: ManagedTarget) -> Iterator[bool]:
    """Whether nobody changes anything at the site; nobody does within the block then."""
    try:
        with FileLock(managed.folder / "lock", timeout=0):
            yield True
    except Timeout:
        yield False


def _look(target: str, version: str, workspace: Workspace, now: bool, tell: Tell) -> None:
    """Tell how far the rollout is, and hurry it where that is wanted."""
    status = next((one for one in target_status.status(workspace) if one.target == target), None)
    if (
        status is not None
        and not status.trying
        and status.serving
        and status.serving.version == version
    ):
        return
    if status is None or status.trying != version:
        tell(f"{target}: waiting for the rollout of version {version}")
        return
    if now:
        target_status.order(target, "now", workspace)
    share = f", {status.share} % of new requests" if status.share else ""
    held = ", paused" if status.paused else ""
    tell(f"{target}: version {version}: {status.phase}{share}{held}")


def _deployer_answers(workspace: Workspace) -> bool:
    ports = service_addresses.read(workspace.settings.home)
    return ports is not None and service_addresses.answers(f"{ports.url('deployer')}/health")
