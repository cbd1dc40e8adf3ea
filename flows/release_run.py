"""One release under way: each stage as a Prefect task over a cached step, and what MLflow is told
of it.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import TypeVar

from weighbridge.configs.recipe import Recipe
from weighbridge.core.errors import GateFailed, WeighbridgeError
from weighbridge.core.stage_cache import StageOutcome, fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages
from weighbridge.flows.prefect_adapter import run_stage
from weighbridge.flows.release_records import ReleaseRecords
from weighbridge.registry import Binding, Registry, Version
from weighbridge.rollout import operations
from weighbridge.rollout.champion import (
    BENTO,
    BENTO_DIGEST,
    WEIGHING,
    Champion,
    as_candidate,
    find_champion,
)
from weighbridge.rollout.reconcile import Result, managed_target_of, reconcile
from weighbridge.rollout.target_status import serving_at
from weighbridge.serving.targets.base import Release, Serving
from weighbridge.tasks import optimize as optimizing
from weighbridge.tasks import weigh as weighing
from weighbridge.tasks.download import Downloaded, pin
from weighbridge.tasks.evaluate import Evaluated, gate
from weighbridge.tasks.finetune import Finetuned
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.optimize import Optimized
from weighbridge.tasks.select import Decision
from weighbridge.tasks.weigh import Weighed

logger = logging.getLogger("weighbridge.release")
R = TypeVar("R")


@dataclass
class ReleaseRun:
    """Recipe, workspace and MLflow of one release, and the versions it has registered so far."""

    recipe: Recipe
    workspace: Workspace
    registry: Registry
    journal: ReleaseRecords
    versions: dict[str, Version] = field(default_factory=dict)
    """By role (`base`, `merged`) and by variant label."""

    @classmethod
    def begin(cls, recipe: Recipe) -> "ReleaseRun":
        workspace = Workspace()
        registry = Registry.connect(workspace.settings)
        return cls(recipe, workspace, registry, ReleaseRecords(registry, recipe))

    def download(self) -> Downloaded:
        managed = managed_target_of(self.binding(), self.workspace)
        # An address or a device that can't be had is told now, and not when everything else is
        # done.
        managed.target.check()
        weighing.check(self.recipe.weigh)

        def call() -> StageOutcome[Downloaded]:
            pinned = pin(self.recipe.download, self.workspace)
            return cached_stages.download_step(pinned, self.recipe, self.workspace).run(
                self.workspace
            )

        got = run_stage("download", call).value
        self.versions["base"] = self.journal.base(got)
        # Seconds after the download, and not hours after the fine-tune.
        optimizing.check(got.model.path, self.recipe.optimize, self.workspace)
        return got

    def finetune(self, got: Downloaded) -> Finetuned:
        inputs = cached_stages.finetune_inputs(got, self.recipe)
        with self.journal.stage(
            "finetune", inputs, self.recipe.finetune.model_dump(mode="json")
        ) as run:
            tuned = self._stage(
                cached_stages.finetune_step(got, self.recipe, self.workspace, run.log_step)
            )
            self.versions["merged"] = self.journal.finetuned(tuned, self.versions["base"], run)
        return tuned

    def evaluate(self, got: Downloaded, tuned: Finetuned) -> Evaluated:
        """Raises GateFailed when the fine-tuned model is worse than its base."""
        step = cached_stages.evaluate_step(got, tuned, self.recipe, self.workspace)
        with self.journal.stage("evaluate", step.inputs) as run:
            evaluated = self._stage(step)
            self.journal.evaluated(
                evaluated, got, self.versions["base"], self.versions["merged"], run
            )
        gate(evaluated, self.recipe.evaluate)
        return evaluated

    def optimize(self, got: Downloaded, tuned: Finetuned) -> Optimized:
        made = self._stage(cached_stages.optimize_step(got, tuned, self.recipe, self.workspace))
        self.versions |= self.journal.variants(made.variants, self.versions["merged"])
        return made

    def weigh(self, got: Downloaded, made: Optimized) -> Weighed:
        step = cached_stages.weigh_step(got, made, self.recipe, self.workspace)
        with self.journal.stage("weigh", step.inputs) as run:
            weighed = self._stage(step)
            for measurement in weighed.measurements:
                self.journal.measured(
                    measurement, self.versions[measurement.candidate.variant.label], got, run
                )
        return weighed

    def select(
        self, got: Downloaded, evaluated: Evaluated, weighed: Weighed
    ) -> tuple[Decision, list[Measurement]]:
        """The decision, and every measurement it looked at, the champion's included."""
        champion = self._champion_measured(got, weighed)
        decision = self._stage(cached_stages.select_step(weighed, evaluated, champion, self.recipe))
        return decision, [*weighed.measurements, *([champion] if champion else [])]

    def package(
        self, got: Downloaded, tuned: Finetuned, winner: Candidate, weighed: Weighed
    ) -> Release:
        """The winner's Bento; its version becomes the challenger."""
        lineage = cached_stages.lineage_of(got, tuned, self.recipe)
        packaged = self._stage(
            cached_stages.package_step(winner, lineage, self.recipe, self.workspace)
        )
        version = self.versions[winner.variant.label]
        facts = {BENTO: packaged.tag, BENTO_DIGEST: packaged.digest, WEIGHING: fingerprint(weighed)}
        self.registry.tag(
            version, facts | ({"bento_pushed": packaged.pushed} if packaged.pushed else {})
        )
        self.registry.set_challenger(version, winner.label)
        return packaged.release(version.name, version.version)

    def champions_release(self) -> Release:
        """What serves now, to be served on."""
        champion = self.registry.version(self.recipe.name)
        return Release(
            name=champion.name,
            version=champion.version,
            bento=champion.tags[BENTO],
            digest=champion.tags[BENTO_DIGEST],
        )

    def promotes(self) -> bool:
        """Whether the recipe's policy lets the challenger serve without being asked."""
        policy = self.recipe.deploy.promote
        return policy == "always" or (
            policy == "first" and self.registry.champion(self.recipe.name) is None
        )

    def deploy(self, release: Release) -> Serving:
        """Let `champion` name the release's version, and have it served; on failure it names what
        served before.

        Raises:
            GateFailed: it was tried, and the version before goes on serving.
        """
        version = self.registry.version(release.name, release.version)
        before = self.registry.champion(release.name)
        binding = self.binding()
        self.registry.bind(binding)
        self.registry.promote(version)

        def call() -> StageOutcome[Result]:
            started = time.monotonic()
            try:
                result = reconcile(binding, self.registry, self.workspace, "run", force=True)
            except WeighbridgeError:
                self.registry.restore_champion(version, before)
                raise
            if result.action in ("failed", "kept", "interrupted"):
                self.registry.restore_champion(version, before)
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

    def binding(self) -> Binding:
        """The target of this recipe, with what its monitor has to know of the recipe."""
        deploy, select = self.recipe.deploy, self.recipe.select
        floor = select.floor if deploy.monitor.floor is None else deploy.monitor.floor
        monitor = deploy.monitor.model_copy(
            update={"floor": floor, "metric": deploy.monitor.metric or select.metric}
        )
        args = deploy.model_copy(update={"monitor": monitor}).model_dump(
            mode="json", exclude_unset=True
        )
        return Binding(target=deploy.name or self.recipe.name, model=self.recipe.name, deploy=args)

    def _until_drained(self, binding: Binding) -> Serving:
        """What serves now, once the version before has finished its requests."""
        while not operations.stop_drained(binding.target, self.workspace):
            time.sleep(0.2)
        return serving_at(managed_target_of(binding, self.workspace))

    def _stage(self, step: cached_stages.CachedStage[R]) -> R:
        return run_stage(step.name, lambda: step.run(self.workspace)).value

    def _champion_measured(self, got: Downloaded, weighed: Weighed) -> Measurement | None:
        """The champion on today's scale; None where there is none, or where it won this very
        weighing.
        """
        champion = find_champion(self.registry, self.recipe.name)
        if champion is None or champion.weighing == fingerprint(weighed):
            return None
        candidate = as_candidate(champion, self.registry, self.workspace)
        if candidate is None:
            return None
        named = candidate.model_copy(update={"label": champion_label(champion)})
        return weighing.weigh_one(
            named, got.data, self.recipe.evaluate, self.recipe.weigh, self.workspace
        )


def champion_label(champion: Champion) -> str:
    """How the report calls the version that serves now."""
    return f"champion {champion.version.version} ({champion.measurement.candidate.label})"
