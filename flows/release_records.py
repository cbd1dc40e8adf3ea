"""What MLflow keeps of a release. It is written after each stage, and only once: a second release
with the same inputs changes nothing.
"""

from collections.abc import Mapping, Sequence

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Dataset, MeasuredFigures, MlflowRun, Registry, Role, Version
from weighbridge.tasks.download import Downloaded
from weighbridge.tasks.evaluate import Evaluated
from weighbridge.tasks.finetune_args import Finetuned
from weighbridge.tasks.measurement import Measurement, Variant
from weighbridge.tasks.metrics.base import Score
from weighbridge.tasks.report import WeighingReport
from weighbridge.tasks.search.candidates import GRID
from weighbridge.tasks.search.visits import write_grid
from weighbridge.tasks.search.weighed import weighed_grid

RECIPE = "recipe.json"
"""Kept with the run of a release: everything that it was asked for."""


class ReleaseRecords:
    """One release in MLflow: its run, the runs of its stages, the versions it makes."""

    def __init__(self, registry: Registry, recipe: Recipe) -> None:
        self.registry = registry
        self.recipe = recipe
        self.tags = {"recipe": recipe.name, "recipe_digest": fingerprint(recipe)}
        self.mlflow_run = registry.release(
            recipe.name,
            recipe,
            params=recipe.model_dump(mode="json", exclude_none=True),
            tags=self.tags,
        )
        if not self.mlflow_run.continued:
            self.mlflow_run.keep_text(recipe.model_dump_json(indent=1), RECIPE)

    def stage(
        self, name: str, inputs: Mapping[str, object], params: Mapping[str, object] | None = None
    ) -> MlflowRun:
        """Begin the run of a stage, or go on with the one that has the same inputs."""
        return self.registry.stage(self.mlflow_run, name, inputs, params=params)

    def base(self, downloaded: Downloaded) -> Version:
        """Register the base model, and note the data among the release's inputs."""
        self.mlflow_run.log_dataset(_dataset(downloaded.data, "train", context="training"))
        return self._register("base", downloaded.model, None)

    def finetuned(self, finetuned: Finetuned, base: Version, run: MlflowRun) -> Version:
        """Register adapter and merged weights; return the version of the merged ones."""
        # The steps that were logged while it trained are there already, unless the process was
        # killed or the stage was reused from a run that MLflow does not know.
        run.log_history(finetuned.losses)
        adapter = self._register("adapter", finetuned.adapter, base, run=run, facts=finetuned.facts)
        merged = self._register("merged", finetuned.merged, adapter, run=run, facts=finetuned.facts)
        run.log_models(outputs=[adapter.model_id, merged.model_id])
        return merged

    def evaluated(
        self,
        evaluated: Evaluated,
        downloaded: Downloaded,
        base: Version,
        model: Version,
        run: MlflowRun,
    ) -> None:
        """Log the metrics of base and fine-tuned model, each on its own logged model, and keep the
        predictions as files. Without a fine-tune both are one.
        """
        validation, test = (
            _dataset(downloaded.data, "validation"),
            _dataset(downloaded.data, "test"),
        )
        run.log_metrics(_values(evaluated.finetuned), validation, model.model_id)
        run.log_metrics(_values(evaluated.test, "test."), test, model.model_id)
        if model != base:
            # On the run as well, where base and fine-tuned model stand side by side.
            run.log_metrics(_values(evaluated.base, "base."), validation)
            run.log_metrics(_values(evaluated.base), validation, base.model_id)
        for file in sorted(evaluated.predictions.path.iterdir()):
            run.attach(file, "predictions")

    def variants(self, variants: list[Variant], model: Version) -> dict[str, Version]:
        """Register a version per variant of a model; return them by label."""
        return {
            variant.label: self._register(
                "variant",
                variant.artifact,
                model,
                label=variant.label,
                facts=variant.facts,
                tags={"optimizer": variant.optimizer},
            )
            for variant in variants
        }

    def measured(
        self, measurement: Measurement, version: Version, downloaded: Downloaded, run: MlflowRun
    ) -> None:
        """Log a candidate's figures on its logged model; nothing of one that failed."""
        if measurement.failure:
            return
        figures = [
            MeasuredFigures(
                _values(measurement.scores) | _faults(measurement, "validation"),
                _dataset(downloaded.data, "validation"),
            ),
            MeasuredFigures(
                _values(measurement.test_scores, "test.") | _faults(measurement, "test", "test."),
                _dataset(downloaded.data, "test"),
            ),
            MeasuredFigures(_speed(measurement)),
        ]
        predictions = measurement.predictions.path.iterdir() if measurement.predictions else ()
        files = {file.name: file for file in predictions}
        engine = measurement.candidate.engine.model_dump(mode="json", exclude_none=True)
        self.registry.record_measurement(
            version,
            measurement.candidate.label,
            run=run,
            document=measurement.model_dump_json(indent=1),
            figures=figures,
            params={f"engine.{key}": str(value) for key, value in engine.items()},
            files=files,
        )

    def grid(
        self, measurements: Sequence[Measurement], run: MlflowRun, workspace: Workspace
    ) -> None:
        """Keep what was measured with the run of the weighing, as a grid that can be replayed."""
        with workspace.store.scratch() as scratch:
            write_grid(scratch / GRID, weighed_grid(measurements))
            run.attach(scratch / GRID, "weighing")

    def report(self, report: WeighingReport, workspace: Workspace) -> None:
        """Keep the report with the release's run: as its description, as a page, as a chart."""
        self.mlflow_run.describe(report.markdown, "The whole is report/report.md of this run.")
        with workspace.store.scratch() as scratch:
            for file in report.save(scratch):
                self.mlflow_run.attach(file, "report")

    def _register(
        self,
        role: Role,
        artifact: Artifact,
        parent: Version | None,
        *,
        run: MlflowRun | None = None,
        label: str = "",
        facts: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Version:
        return self.registry.register(
            self.recipe.name,
            role,
            artifact,
            run=run or self.mlflow_run,
            parent=parent,
            label=label,
            tags={**self.tags, **(tags or {})},
            params=dict(facts or {}),
        )


def _dataset(data: Artifact, split: str, context: str = "evaluation") -> Dataset:
    return Dataset(
        name=split, digest=data.digest, source=data.origin.get("uri", ""), context=context
    )


def _values(scores: Mapping[str, Score], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{label}": score.value for label, score in scores.items()}


def _faults(measurement: Measurement, split: str, prefix: str = "") -> dict[str, float]:
    return _values(measurement.faults.get(split, {}), f"{prefix}answers.")


def _speed(measurement: Measurement) -> dict[str, float]:
    """Return the figures that no data set decides: seconds, bytes, tokens per second."""
    figures: dict[str, float] = {
        "load_seconds": measurement.load_seconds,
        "peak_memory_bytes": measurement.peak_memory,
        "size_bytes": measurement.candidate.variant.artifact.size,
    }
    if measurement.cost_per_million_tokens is not None:
        figures["cost_per_million_tokens"] = measurement.cost_per_million_tokens
    if measurement.cost_per_thousand_requests is not None:
        figures["cost_per_thousand_requests"] = measurement.cost_per_thousand_requests
    if (goodput := measurement.sustained) is not None:
        figures["goodput"] = goodput
    if measurement.gpu:
        figures["gpu_memory_bytes"] = measurement.gpu.memory
    for load in measurement.load:
        at = f"at_{load.concurrency}"
        seen = {
            f"tokens_per_second_{at}": load.tokens_per_second,
            f"requests_per_second_{at}": load.requests_per_second,
            f"ttft_p50_{at}": load.ttft_p50,
            f"ttft_p95_{at}": load.ttft_p95,
            f"itl_p50_{at}": load.itl_p50,
            f"tpot_p50_{at}": load.tpot_p50,
            f"tpot_p95_{at}": load.tpot_p95,
            f"cpu_seconds_per_request_{at}": load.cpu_seconds_per_request,
            f"cached_share_{at}": load.cached_share,
        }
        # MLflow takes numbers alone: what is not known has no metric.
        figures |= {name: value for name, value in seen.items() if value is not None}
    return figures
