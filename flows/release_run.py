"""One release under way: each stage is a Prefect task, is cached, and is recorded in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.stage_cache import StageOutcome, fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages, pool_checks
from weighbridge.flows.placed_stages import PlacedStages
from weighbridge.flows.prefect_adapter import run_stage
from weighbridge.flows.release_records import ReleaseRecords
from weighbridge.flows.release_report import how_to_repeat, release_report
from weighbridge.flows.release_target import ReleaseTarget
from weighbridge.flows.remote_stages import StageInputs
from weighbridge.registry import MlflowRun, Registry, Version, clocks
from weighbridge.rollout.champion import (
    BENTO,
    BENTO_DIGEST,
    RELEASE_RUN,
    WEIGHING,
    Champion,
    as_candidate,
    built_release,
    find_measured,
)
from weighbridge.serving.targets.base import Release
from weighbridge.tasks import model_check
from weighbridge.tasks import optimize as optimizing
from weighbridge.tasks import weigh as weighing
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.download import Downloaded, pin
from weighbridge.tasks.evaluate import Evaluated, gate
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.optimize import Optimized
from weighbridge.tasks.repeat import Repeated
from weighbridge.tasks.report import WeighingReport
from weighbridge.tasks.select import Decision
from weighbridge.tasks.selection import machines, proving_rows
from weighbridge.tasks.weigh import Weighed

R = TypeVar("R")


@dataclass
class ReleaseRun:
    """Recipe, workspace and MLflow of one release, and the versions it has registered so far."""

    recipe: Recipe
    workspace: Workspace
    registry: Registry
    records: ReleaseRecords
    versions: dict[str, Version] = field(default_factory=dict)
    """By role (`base`; `model`: the weights that are released) and by variant label."""
    training_seconds: float | None = None
    """What the fine-tune took, in this run or in the one that it is reused of."""
    weigh_run: MlflowRun = field(init=False)
    """Of the stage weigh in MLflow."""
    placed: PlacedStages = field(init=False)
    """Where stages run."""
    target: ReleaseTarget = field(init=False)
    """Where the version is to serve."""

    def __post_init__(self) -> None:
        self.placed = PlacedStages(self.recipe, self.workspace)
        self.target = ReleaseTarget(self.recipe, self.workspace, self.registry)

    @classmethod
    @contextmanager
    def begin(cls, recipe: Recipe) -> "Iterator[ReleaseRun]":
        """Connect to MLflow, and begin the release's run there or go on with it.

        Raises:
            BadInput: another home works with this MLflow, and nothing keeps the two apart.
        """
        workspace = Workspace()
        registry = Registry.connect(workspace.settings)
        with registry.joined(f"releasing {recipe.name}"):
            records = ReleaseRecords(registry, recipe)
            with records.mlflow_run:
                yield cls(recipe, workspace, registry, records)

    def preflight(self) -> None:
        """Check the target and the engines, before anything is downloaded.

        Raises:
            BadInput: the recipe asks for what cannot be, such as an address that is taken.
            Unavailable: this machine lacks what it needs, such as a device.
        """
        clocks.warn(self.workspace.settings)
        if self.workspace.shared:
            self.workspace.shared.check()
        pool_checks.check(self.recipe.run, self.workspace)
        self.target.check()
        # Another machine's devices are seen there.
        if self.recipe.run.place("weigh") is None:
            weighing.check(self.recipe.weigh)
        # Metrics and judges that these stages have elsewhere may be out of reach here.
        if any(self.recipe.run.place(stage) is None for stage in ("evaluate", "weigh")):
            weighing.check_metrics(self.recipe.evaluate)

    def download(self) -> Downloaded:
        def call() -> StageOutcome[Downloaded]:
            # What the source holds now is a part of the stage: Prefect shows its failure as such.
            pinned = pin(self.recipe.download, self.workspace)
            step = cached_stages.download_step(pinned, self.recipe, self.workspace)
            return self.placed.run(step, StageInputs(pinned=pinned))

        downloaded = run_stage("download", call).value
        self.versions["base"] = self.records.base(downloaded)
        return downloaded

    def check_model(self, downloaded: Downloaded) -> None:
        """Check that this model can read the data, that every variant can be made of it, and that
        there are rows enough to show the limits: hours before they are made.

        Raises:
            BadInput: it cannot, an optimizer cannot take such a model, or there are too few rows.
        """
        model_check.check(downloaded.model, downloaded.data, self.workspace)
        optimizing.check(downloaded.model.path, self.recipe.optimize, self.workspace)
        rows = read_rows(downloaded.data, "test")
        proving_rows.check_rows(rows, self.recipe.select, self.recipe.evaluate)

    def finetunes(self) -> bool:
        """Whether the recipe asks for a fine-tune, or releases the model as it was downloaded."""
        return self.recipe.finetune != "none"

    def finetune(self, downloaded: Downloaded) -> Artifact:
        """Return the weights to release: the fine-tune's, or the base's own."""
        args = self.recipe.finetune
        if args == "none":
            self.versions["model"] = self.versions["base"]
            return downloaded.model
        inputs = cached_stages.finetune_inputs(downloaded, args)
        with self.records.stage("finetune", inputs, args.model_dump(mode="json")) as run:
            finetuned = self._stage(
                cached_stages.finetune_step(downloaded, args, self.workspace, run.log_step),
                StageInputs(downloaded=downloaded),
            )
            self.training_seconds = finetuned.seconds
            self.versions["model"] = self.records.finetuned(finetuned, self.versions["base"], run)
        return finetuned.merged

    def evaluate(self, downloaded: Downloaded, model: Artifact) -> Evaluated:
        """Score the weights to release, and the base of a fine-tune.

        Raises:
            GateFailed: the fine-tuned model is worse than its base.
        """
        step = cached_stages.evaluate_step(downloaded, model, self.recipe, self.workspace)
        with self.records.stage("evaluate", step.inputs) as run:
            evaluated = self._stage(step, StageInputs(downloaded=downloaded, model=model))
            self.records.evaluated(
                evaluated, downloaded, self.versions["base"], self.versions["model"], run
            )
        # After both are recorded: a model that is refused has its figures in MLflow.
        if self.finetunes():
            gate(evaluated, self.recipe.evaluate)
        return evaluated

    def optimize(self, downloaded: Downloaded, model: Artifact) -> Optimized:
        optimized = self._stage(
            cached_stages.optimize_step(downloaded, model, self.recipe, self.workspace),
            StageInputs(downloaded=downloaded, model=model),
        )
        self.versions |= self.records.variants(optimized.variants, self.versions["model"])
        return optimized

    def weigh(self, downloaded: Downloaded, model: Artifact, optimized: Optimized) -> Weighed:
        step = self.placed.weigh_step(downloaded, model, optimized)
        given = StageInputs(downloaded=downloaded, model=model, optimized=optimized)
        with self.records.stage("weigh", step.inputs) as self.weigh_run:
            weighed = run_stage(step.name, lambda: self.placed.weigh(step, given)).value
            for file in sorted(weighed.search.path.iterdir()) if weighed.search else ():
                self.weigh_run.attach(file, "search")
        return weighed

    def select(
        self, downloaded: Downloaded, evaluated: Evaluated, weighed: Weighed
    ) -> tuple[Decision, list[Measurement]]:
        """Return the decision, and every measurement it looked at, the champion's included."""
        champion, unweighed = self._champion_measured(downloaded, evaluated, weighed)
        known = [*weighed.measurements, *([champion] if champion else [])]
        on_machines = machines.compared(known, self.recipe.select)
        repeated = self._stage(
            self._repeat_step(downloaded, evaluated, weighed, champion),
            StageInputs(
                downloaded=downloaded, evaluated=evaluated, weighed=weighed, champion=champion
            ),
        )
        # Not before: a measurement is recorded once, with its repeats.
        for measured in repeated.measurements:
            version = self.versions[measured.candidate.variant.label]
            self.records.measured(measured, version, downloaded, self.weigh_run)
        champion = repeated.champion
        everybody = [*repeated.measurements, *([champion] if champion else [])]
        self.records.grid(everybody, self.weigh_run, self.workspace)
        step = cached_stages.select_step(repeated, evaluated, champion, self.recipe, unweighed)
        decision = run_stage(step.name, lambda: step.run(self.workspace)).value
        if on_machines:
            notes = {**decision.notes, "the machines": on_machines}
            decision = decision.model_copy(update={"notes": notes})
        if decision.finalist_score is not None:
            rows = read_rows(downloaded.data, "test")
            uses = proving_rows.count_use(rows, fingerprint(step.inputs), self.workspace)
            notes = {**decision.notes, "the test rows": proving_rows.worn(uses)}
            said = {label: note for label, note in notes.items() if note}
            decision = decision.model_copy(update={"test_uses": uses, "notes": said})
        return decision, everybody

    def package(
        self, downloaded: Downloaded, model: Artifact, winner: Candidate, weighed: Weighed
    ) -> Release:
        """Build the winner's Bento; its version becomes the challenger."""
        lineage = cached_stages.lineage_of(downloaded, model, self.recipe)
        packaged = self._stage(
            cached_stages.package_step(winner, lineage, self.recipe, self.workspace),
            StageInputs(candidate=winner, lineage=lineage),
        )
        version = self.versions[winner.variant.label]
        facts = {
            BENTO: packaged.tag,
            BENTO_DIGEST: packaged.digest,
            WEIGHING: fingerprint(weighed),
            RELEASE_RUN: self.records.mlflow_run.run_id,
        }
        self.registry.tag(
            version, facts | ({"bento_pushed": packaged.pushed} if packaged.pushed else {})
        )
        # Once the Bento is there: a challenger may be promoted by anybody at any time.
        self.registry.set_challenger(version, winner.label)
        release = packaged.release(version.name, version.version)
        return release.model_copy(update={"peak_memory": _peak_memory(winner, weighed)})

    def report(
        self,
        downloaded: Downloaded,
        model: Artifact,
        evaluated: Evaluated,
        weighed: Weighed,
        decision: Decision,
        measurements: list[Measurement],
    ) -> WeighingReport:
        """Make the report of the weighing, and keep it with the release's run."""
        winner = cached_stages.winner_of(decision, weighed)
        version = self.versions[winner.variant.label] if winner else None
        run_id = self.records.mlflow_run.run_id
        report = release_report(
            self.recipe,
            downloaded,
            model,
            evaluated,
            weighed,
            decision,
            measurements,
            training_seconds=self.training_seconds,
            repeat=how_to_repeat(version, run_id, self.workspace.settings),
        )
        self.records.report(report, self.workspace)
        return report

    def champions_release(self) -> Release:
        """Return what serves now, so that it goes on serving."""
        champion = self.registry.version(self.recipe.name)
        measured = find_measured(self.registry, champion)
        release = built_release(champion, measured.measurement.peak_memory if measured else 0)
        if release is None:
            # Deploying builds it; until then it is known by its version alone.
            return Release(name=champion.name, version=champion.version, bento="", digest="")
        return release

    def promotes(self) -> bool:
        """Whether the recipe's policy lets the challenger serve without being asked."""
        policy = self.recipe.deploy.promote
        return policy == "always" or (
            policy == "first" and self.registry.champion(self.recipe.name) is None
        )

    def _stage(self, step: cached_stages.CachedStage[R], inputs: StageInputs) -> R:
        return run_stage(step.name, lambda: self.placed.run(step, inputs)).value

    def _champion_measured(
        self, downloaded: Downloaded, evaluated: Evaluated, weighed: Weighed
    ) -> tuple[Measurement | None, str]:
        """Measure the champion as the candidates were; else say why nothing is known of it.

        Neither where there is none, or where it won this very weighing by this recipe.
        """
        version = self.registry.champion(self.recipe.name)
        if version is None:
            return None, ""
        champion = find_measured(self.registry, version)
        if champion is None:
            return None, _unknown_champion(version, "it was never weighed")
        if champion.weighing == fingerprint(weighed) and self._decided(
            downloaded, evaluated, weighed
        ):
            return None, ""
        candidate = as_candidate(champion, self.registry, self.workspace)
        if candidate is None:
            return None, _unknown_champion(version, "its weights are not to be had")
        labelled = candidate.model_copy(update={"label": champion_label(champion)})
        return self.placed.weigh_one(labelled, downloaded), ""

    def _decided(self, downloaded: Downloaded, evaluated: Evaluated, weighed: Weighed) -> bool:
        """Whether this recipe made a decision of this weighing while nothing served."""
        repeated = self._repeat_step(downloaded, evaluated, weighed, None).forecast(self.workspace)
        if repeated.value is None:
            return False
        step = cached_stages.select_step(repeated.value, evaluated, None, self.recipe)
        return step.forecast(self.workspace).value is not None

    def _repeat_step(
        self,
        downloaded: Downloaded,
        evaluated: Evaluated,
        weighed: Weighed,
        champion: Measurement | None,
    ) -> cached_stages.CachedStage[Repeated]:
        return cached_stages.repeat_step(
            downloaded, evaluated, weighed, champion, self.recipe, self.workspace
        )


def _unknown_champion(version: Version, why: str) -> str:
    return (
        f"version {version.version} of {version.name} could not be compared: {why}; another takes "
        f"its place by hand (weighbridge promote {version.name} VERSION)"
    )


def _peak_memory(winner: Candidate, weighed: Weighed) -> int:
    return next(
        measurement.peak_memory
        for measurement in weighed.measurements
        if measurement.candidate.label == winner.label
    )


def champion_label(champion: Champion) -> str:
    """Return what the report calls the version that serves now."""
    return f"champion {champion.version.version} ({champion.measurement.candidate.label})"
