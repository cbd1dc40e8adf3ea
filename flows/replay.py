"""Replay: a release is made and measured again from its recipe, and compared with its record.

Nothing is registered, promoted or served, and no finished stage of another run is taken: what is
compared was computed anew. A replay that is killed goes on where it was.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages
from weighbridge.flows.prefect_adapter import publish_report, release_flow, run_stage
from weighbridge.flows.release_records import RECIPE
from weighbridge.registry import Registry, Version
from weighbridge.rollout.champion import RELEASE_RUN, Champion, find_measured
from weighbridge.tasks import weigh
from weighbridge.tasks.download import Downloaded, pin
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.optimize import OptimizeArgs
from weighbridge.tasks.replay import ReplayedFigure, compare
from weighbridge.tasks.report_page import table

R = TypeVar("R")


@dataclass(frozen=True)
class Replayed:
    """A release beside its repetition."""

    version: Version
    figures: list[ReplayedFigure]


@release_flow(name="replay", flow_run_name="replay {name} {which}")
def replay(name: str, which: str) -> Replayed:
    """Make and measure a version again, and say where its figures leave their intervals.

    Raises:
        BadInput: there is no such version, or it did not come from a release of this home's MLflow
            that kept its recipe.
    """
    workspace = Workspace()
    registry = Registry.connect(workspace.settings)
    version = registry.version(name, which)
    released = find_measured(registry, version)
    if released is None:
        raise _not_replayable(version, "it was never weighed")
    recipe = _recipe_of(registry, version)
    records = workspace.settings.home / "replays" / f"{version.name}-{version.version}"
    repeated, digests = _make_again(
        recipe, released, Workspace(workspace.settings, records=records)
    )
    figures = compare(released.measurement, repeated, _digests_of(registry, version), digests)
    shutil.rmtree(records)
    rows = [{key: str(value) for key, value in row.model_dump().items()} for row in figures]
    publish_report(f"{name}-replay", _markdown(version, rows), rows, "A release, repeated")
    return Replayed(version, figures)


def _not_replayable(version: Version, why: str) -> BadInput:
    return BadInput(
        f"replaying {version.name} {version.version}",
        why,
        f"choose a version that a release packaged: weighbridge models {version.name}",
    )


def _recipe_of(registry: Registry, version: Version) -> Recipe:
    run_id = version.tags.get(RELEASE_RUN)
    if not run_id:
        raise _not_replayable(version, "no release says that it packaged it")
    try:
        return Recipe.model_validate_json(registry.text_of_run(run_id, RECIPE))
    except Unavailable as exc:
        raise _not_replayable(version, f"its recipe is not to be had: {exc}") from exc


def _digests_of(registry: Registry, version: Version) -> dict[str, str]:
    lineage = registry.show(version.name, version.version).lineage
    return {ancestor.label or ancestor.role: ancestor.digest for ancestor in lineage}


def _make_again(
    recipe: Recipe, released: Champion, workspace: Workspace
) -> tuple[Measurement, dict[str, str]]:
    """Return how the candidate is measured now, and the digests of what was made on the way."""

    def stage(step: cached_stages.CachedStage[R]) -> R:
        return run_stage(step.name, lambda: step.run(workspace)).value

    downloaded = stage(
        cached_stages.download_step(pin(recipe.download, workspace), recipe, workspace)
    )
    made = {"base": downloaded.model}
    model = downloaded.model
    if recipe.finetune != "none":
        finetuned = stage(cached_stages.finetune_step(downloaded, recipe.finetune, workspace))
        model = finetuned.merged
        made |= {"adapter": finetuned.adapter, "merged": finetuned.merged}
    label = released.measurement.candidate.variant.label
    only = OptimizeArgs(
        variants=[variant for variant in recipe.optimize.variants if variant.label() == label]
    )
    optimized = stage(
        cached_stages.optimize_step(
            downloaded, model, recipe.model_copy(update={"optimize": only}), workspace
        )
    )
    (variant,) = optimized.variants
    made[label] = variant.artifact
    return _weigh_again(recipe, released, downloaded, model, made, workspace), {
        name: artifact.digest for name, artifact in made.items()
    }


def _weigh_again(
    recipe: Recipe,
    released: Champion,
    downloaded: Downloaded,
    model: Artifact,
    made: Mapping[str, Artifact],
    workspace: Workspace,
) -> Measurement:
    """Measure the candidate under the options that tuning found then; `model` are the weights that
    its variant was made of.
    """
    candidate = released.measurement.candidate
    variant = candidate.variant.model_copy(update={"artifact": made[candidate.variant.label]})
    again = candidate.model_copy(update={"variant": variant})
    args = recipe.weigh.model_copy(update={"tune": False})

    def call() -> StageOutcome[Measurement]:
        started = time.monotonic()
        measured = weigh.weigh_one(
            again,
            downloaded.data,
            recipe.evaluate,
            args,
            workspace,
            recipe.select.concurrency,
            reference=model,
        )
        if measured.failure:
            raise Unavailable("measuring it again", measured.failure)
        seconds = time.monotonic() - started
        return StageOutcome(measured, reused=False, why="measured again", seconds=seconds)

    return run_stage("weigh", call).value


def _markdown(version: Version, rows: list[dict[str, str]]) -> str:
    figures = table(list(rows[0]), [list(row.values()) for row in rows])
    return f"# {version.name} {version.version}, made and measured again\n\n{figures}\n"
