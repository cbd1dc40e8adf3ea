"""The target of a release: what its recipe says of it, and the version that is to serve there."""

import time
from dataclasses import dataclass

from weighbridge.configs.recipe import Recipe
from weighbridge.core.errors import GateFailed, WeighbridgeError
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace
from weighbridge.flows.prefect_adapter import run_stage
from weighbridge.registry import Binding, Registry
from weighbridge.rollout import target_operations
from weighbridge.rollout.deploy_args import read_deploy_args
from weighbridge.rollout.managed_target import ManagedTarget
from weighbridge.rollout.reconcile import ReconcileResult, managed_target_of, reconcile
from weighbridge.rollout.target_status import serving_at
from weighbridge.serving.targets.base import Release, Serving


@dataclass(frozen=True)
class ReleaseTarget:
    """The target that a recipe names."""

    recipe: Recipe
    workspace: Workspace
    registry: Registry

    def check(self) -> None:
        """Make sure that versions could serve there.

        Raises:
            BadInput: the address is somebody else's, or the target is not there.
            Unavailable: it lacks what it needs.
        """
        self._managed().target.check()

    def deploy(self, release: Release) -> Serving:
        """Let `champion` name the release's version, and have it served.

        On failure `champion` names again what served before.

        Raises:
            GateFailed: it was tried, and the version before goes on serving.
        """
        version = self.registry.version(release.name, release.version)
        previous_champion = self.registry.champion(release.name)
        # The target's arguments before the alias: the deployer, woken by that, reads them at once.
        binding = self.put_in_force()
        self.registry.promote(version)

        def call() -> StageOutcome[ReconcileResult]:
            started = time.monotonic()
            try:
                result = reconcile(binding, self.registry, self.workspace, "run", force=True)
            except WeighbridgeError:
                self.registry.restore_champion(version, previous_champion)
                raise
            if result.action in ("failed", "kept", "interrupted"):
                self.registry.restore_champion(version, previous_champion)
                goes_on = (
                    f"version {result.version} goes on serving"
                    if result.version
                    else "nothing serves"
                )
                raise GateFailed(f"deploying version {version.version}", result.detail, goes_on)
            seconds = time.monotonic() - started
            return StageOutcome(
                result, reused=result.action == "nothing", why=result.detail, seconds=seconds
            )

        run_stage("deploy", call)
        return self._until_drained(binding)

    def put_in_force(self) -> Binding:
        """Have what the recipe says of the target hold from now on, whatever serves there.

        Raises:
            BadInput: the address can't be had so; what was in force before still is.
        """
        # Here before MLflow: a process that is killed in between must not leave an address more
        # open than the recipe says.
        since = self._managed().put_in_force()
        return self.registry.bind(self.binding().model_copy(update={"since": since}))

    def binding(self) -> Binding:
        """Return the target of this recipe, with what its monitor has to know of the recipe."""
        deploy, select = self.recipe.deploy, self.recipe.select
        floor = select.floor if deploy.monitor.floor is None else deploy.monitor.floor
        monitor = deploy.monitor.model_copy(
            update={"floor": floor, "metric": deploy.monitor.metric or select.metric}
        )
        args = deploy.model_copy(update={"monitor": monitor}).model_dump(
            mode="json", exclude_unset=True
        )
        return Binding(target=self.recipe.target, model=self.recipe.name, deploy=args)

    def _managed(self) -> ManagedTarget:
        """Return the target with the arguments of this recipe, in force or not."""
        binding = self.binding()
        args = read_deploy_args(binding.target, binding.deploy)
        return ManagedTarget(binding.target, args, self.workspace)

    def _until_drained(self, binding: Binding) -> Serving:
        """Return what serves now, once the version before has finished its requests."""
        while not target_operations.stop_drained(binding.target, self.workspace):
            time.sleep(0.2)
        return _once_it_answers(managed_target_of(binding, self.workspace))


def _once_it_answers(managed: ManagedTarget) -> Serving:
    """Return what serves, once clients are answered: what did not run, as after a reboot, was
    only started again.
    """
    deadline = time.monotonic() + managed.args.rollout.start_deadline
    serving = serving_at(managed)
    while serving.release and not serving.healthy and time.monotonic() < deadline:
        time.sleep(0.2)
        serving = serving_at(managed)
    return serving
