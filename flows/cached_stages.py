"""The stages of a release as cached steps: what identifies each, and the call that computes it.

The release flow runs them; `weighbridge plan` forecasts them. One definition, so that a plan cannot
say anything else than what a run does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.stage_cache import Forecast, StageOutcome
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import download, evaluate, finetune, optimize, package, repeat, select, weigh
from weighbridge.tasks.download import Downloaded, Pinned
from weighbridge.tasks.evaluate import Evaluated
from weighbridge.tasks.finetune_args import FinetuneArgs, Finetuned, OnLog, ignore
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.optimize import Optimized
from weighbridge.tasks.package import Packaged
from weighbridge.tasks.repeat import Repeated
from weighbridge.tasks.search import candidates as search_candidates
from weighbridge.tasks.search.aim import Aim
from weighbridge.tasks.select import Decision
from weighbridge.tasks.selection.machines import are_alike
from weighbridge.tasks.weigh import Weighed

R = TypeVar("R")


def _always(_: Any) -> bool:
    return True


@dataclass(frozen=True)
class CachedStage(Generic[R]):
    """One stage with its inputs."""

    name: str
    version: int
    result: type[R]
    inputs: Mapping[str, Any]
    compute: Callable[[], R]
    keep: Callable[[R], bool] = _always
    """Whether a result may be reused by a later run."""

    def run(self, workspace: Workspace) -> StageOutcome[R]:
        return workspace.stages.run(
            self.name, self.version, self.result, self.inputs, self.compute, self.keep
        )

    def forecast(self, workspace: Workspace) -> Forecast[R]:
        return workspace.stages.forecast(self.name, self.version, self.result, self.inputs)


def download_step(pinned: Pinned, recipe: Recipe, workspace: Workspace) -> CachedStage[Downloaded]:
    inputs = download.identity(pinned, recipe.download)
    return CachedStage(
        "download",
        download.VERSION,
        Downloaded,
        inputs,
        lambda: download.download(pinned, recipe.download, workspace),
    )


# Apart from the step: MLflow's run is begun with them, and the step then logs to that run.
def finetune_inputs(downloaded: Downloaded, args: FinetuneArgs) -> dict[str, Any]:
    return finetune.identity(downloaded.model, downloaded.data, args)


def finetune_step(
    downloaded: Downloaded, args: FinetuneArgs, workspace: Workspace, on_log: OnLog = ignore
) -> CachedStage[Finetuned]:
    return CachedStage(
        "finetune",
        finetune.VERSION,
        Finetuned,
        finetune_inputs(downloaded, args),
        lambda: finetune.finetune(downloaded.model, downloaded.data, args, workspace, on_log),
    )


def evaluate_step(
    downloaded: Downloaded, model: Artifact, recipe: Recipe, workspace: Workspace
) -> CachedStage[Evaluated]:
    inputs = {
        "base": downloaded.model,
        "finetuned": model,
        "data": downloaded.data,
        "args": recipe.evaluate,
    }
    return CachedStage(
        "evaluate",
        evaluate.VERSION,
        Evaluated,
        inputs,
        lambda: evaluate.evaluate(
            downloaded.model, model, downloaded.data, recipe.evaluate, workspace
        ),
    )


def optimize_step(
    downloaded: Downloaded, model: Artifact, recipe: Recipe, workspace: Workspace
) -> CachedStage[Optimized]:
    inputs = {
        "merged": model,
        "data": downloaded.data,
        "args": recipe.optimize,
        "makers": optimize.makers(recipe.optimize),
    }
    return CachedStage(
        "optimize",
        optimize.VERSION,
        Optimized,
        inputs,
        lambda: optimize.optimize(model, downloaded.data, recipe.optimize, workspace),
    )


def weigh_step(
    downloaded: Downloaded,
    model: Artifact,
    optimized: Optimized,
    recipe: Recipe,
    workspace: Workspace,
    measure: weigh.Measure | None = None,
) -> CachedStage[Weighed]:
    """Return the step; `measure` measures candidates elsewhere."""
    candidates = weigh.candidates(optimized.variants, recipe.weigh.engines)
    inputs: dict[str, Any] = {
        "candidates": [
            weigh.inputs_of(
                candidate,
                downloaded.data,
                recipe.evaluate,
                recipe.weigh,
                workspace,
                model,
                _machines(recipe),
            )
            for candidate in candidates
        ],
        "labels": [candidate.label for candidate in candidates],
        "args": recipe.weigh,
        # Costs are those at the load that decides.
        "concurrency": recipe.select.concurrency,
    }
    aim = Aim.of(recipe.select)
    if recipe.weigh.search is not None:
        inputs |= {"aim": aim, "search": search_candidates.VERSION}
    return CachedStage(
        "weigh",
        weigh.VERSION,
        Weighed,
        inputs,
        lambda: weigh.weigh(
            optimized.variants,
            downloaded.data,
            recipe.evaluate,
            recipe.weigh,
            workspace,
            aim=aim,
            reference=model,
            measure=measure,
        ),
        # A candidate that failed, by a full memory perhaps, is tried again by the next run; so are
        # all of them where a pool measured them on unequal machines.
        keep=lambda weighed: (
            all(weigh.is_whole(one, recipe.evaluate) for one in weighed.measurements)
            and are_alike(weighed.measurements)
        ),
    )


def _machines(recipe: Recipe) -> dict[str, Any] | None:
    """Return what says which machines candidates are weighed on, where it is not this one."""
    place = recipe.run.place("weigh")
    return place.model_dump(include={"pool", "job_variables"}) if place else None


def candidate_step(
    candidate: Candidate,
    downloaded: Downloaded,
    model: Artifact | None,
    recipe: Recipe,
    workspace: Workspace,
) -> CachedStage[Measurement]:
    """Return the step of one candidate that a pool weighs by itself; its costs are not in it.

    Whoever measures keeps it under the machine's own name: which machine of a pool comes next
    nobody knows before.
    """
    data, metrics, args = downloaded.data, recipe.evaluate, recipe.weigh
    return CachedStage(
        "weigh.candidate",
        weigh.VERSION,
        Measurement,
        weigh.inputs_of(candidate, data, metrics, args, workspace, model, _machines(recipe)),
        lambda: weigh.measure_one(candidate, data, metrics, args, workspace, model),
        keep=lambda _: False,
    )


def repeat_step(
    downloaded: Downloaded,
    evaluated: Evaluated,
    weighed: Weighed,
    champion: Measurement | None,
    recipe: Recipe,
    workspace: Workspace,
) -> CachedStage[Repeated]:
    attempt = 0
    while True:
        step = _repeat_step(downloaded, evaluated, weighed, champion, recipe, workspace, attempt)
        earlier = step.forecast(workspace).value
        if earlier is None or not repeat.is_void(earlier):
            return step
        attempt += 1


def _repeat_step(
    downloaded: Downloaded,
    evaluated: Evaluated,
    weighed: Weighed,
    champion: Measurement | None,
    recipe: Recipe,
    workspace: Workspace,
    attempt: int,
) -> CachedStage[Repeated]:
    inputs = {
        "measurements": weighed.measurements,
        "reference": evaluated.finetuned,
        "champion": champion,
        "data": downloaded.data,
        "metrics": recipe.evaluate,
        "args": recipe.weigh,
        "select": recipe.select,
        "attempt": attempt,
        "answer_tokens": evaluated.answer_tokens,
    }
    return CachedStage(
        "repeat",
        repeat.VERSION,
        Repeated,
        inputs,
        lambda: repeat.repeat(
            weighed.measurements,
            evaluated.finetuned,
            champion,
            downloaded.data,
            recipe.evaluate,
            recipe.weigh,
            recipe.select,
            workspace,
            attempt,
            evaluated.answer_tokens,
        ),
        keep=lambda repeated: not repeated.failed,
    )


def select_step(
    weighed: Weighed,
    evaluated: Evaluated,
    champion: Measurement | None,
    recipe: Recipe,
    unweighed: str = "",
) -> CachedStage[Decision]:
    """Return the step; `unweighed` says why nothing is known of a champion that there is."""
    inputs = {
        "measurements": weighed.measurements,
        "reference": evaluated.finetuned,
        "test_reference": evaluated.test,
        "champion": champion,
        "unweighed": unweighed,
        "answer_tokens": evaluated.answer_tokens,
        "args": recipe.select,
    }
    return CachedStage(
        "select",
        select.VERSION,
        Decision,
        inputs,
        lambda: select.select(
            weighed.measurements,
            evaluated.finetuned,
            champion,
            recipe.select,
            evaluated.test,
            unweighed,
            evaluated.answer_tokens,
        ),
    )


def winner_of(decision: Decision, weighed: Weighed) -> Candidate | None:
    """Return the candidate to release.

    None where the champion stays, or where no candidate is within the limits.
    """
    labels = {
        measurement.candidate.label: measurement.candidate for measurement in weighed.measurements
    }
    return labels.get(decision.winner or "")


def package_step(
    winner: Candidate, lineage: dict[str, str], recipe: Recipe, workspace: Workspace
) -> CachedStage[Packaged]:
    # The Bento is named by its content alone: which version it is in MLflow, MLflow says.
    inputs = {"candidate": winner, "name": recipe.name, "lineage": lineage, "args": recipe.package}
    return CachedStage(
        "package",
        package.VERSION,
        Packaged,
        inputs,
        lambda: package.package(winner, recipe.name, "", lineage, recipe.package, workspace),
    )


def lineage_of(downloaded: Downloaded, model: Artifact, recipe: Recipe) -> dict[str, str]:
    """Return where a Bento comes from: digests from base model to merged weights; `model` are the
    weights that its variant was made of.
    """
    lineage = {
        "recipe": recipe.name,
        "base": downloaded.model.digest,
        "base_source": downloaded.model.origin.get("uri", ""),
        "data": downloaded.data.digest,
    }
    if model.digest == downloaded.model.digest:
        return lineage
    return {**lineage, "adapter": model.origin["adapter"], "merged": model.digest}
