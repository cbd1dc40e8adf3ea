"""Stages of a release where its recipe places them: here, or on a work pool."""

import time
from collections.abc import Sequence
from typing import Final, TypeVar

from weighbridge.configs.recipe import Recipe
from weighbridge.configs.run_args import PoolArgs
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import WeighbridgeError
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages
from weighbridge.flows.cached_stages import CachedStage
from weighbridge.flows.remote_stages import StageInputs
from weighbridge.flows.stage_pools import Order, StagePools
from weighbridge.tasks import weigh
from weighbridge.tasks.download import Downloaded
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.optimize import Optimized
from weighbridge.tasks.weigh import Weighed

R = TypeVar("R")
_NOWHERE: Final[dict[str, str]] = {}
"""Machine of a candidate that was never measured."""


class PlacedStages:
    """The stages of one recipe. What is handed over is kept, and reused, as what runs here."""

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        self._recipe = recipe
        self._workspace = workspace
        self._pools = StagePools(recipe, workspace)

    def run(self, step: CachedStage[R], inputs: StageInputs) -> StageOutcome[R]:
        """Return what a stage gives, which computes what it lacks where the recipe has it run."""
        place, workspace = self._recipe.run.place(step.name), self._workspace
        forecast = step.forecast(workspace) if place else None
        if place is None or forecast is None or forecast.value is not None:
            return step.run(workspace)
        # Not within `step.run`, which holds the record's lock: a worker of this home waits for it.
        started = time.monotonic()
        value = self._pools.run(Order(step, inputs, place, step.name))
        seconds = time.monotonic() - started
        return StageOutcome(value, reused=False, why=forecast.why, seconds=seconds)

    def weigh(self, step: CachedStage[Weighed], inputs: StageInputs) -> StageOutcome[Weighed]:
        """Return what `weigh_step` gives; on a pool, each candidate is a run of its own."""
        if self._recipe.weigh.search is None:
            return step.run(self._workspace)
        # A search measures one candidate against the other all the time: it is one run.
        return self.run(step, inputs)

    def weigh_step(
        self, downloaded: Downloaded, model: Artifact, optimized: Optimized
    ) -> CachedStage[Weighed]:
        """Return the step that `weigh` runs."""
        recipe, workspace = self._recipe, self._workspace
        place = recipe.run.place("weigh")

        def measure(candidates: Sequence[Candidate]) -> list[Measurement]:
            assert place is not None
            return self._measure(candidates, downloaded, model, place)

        elsewhere = measure if place and recipe.weigh.search is None else None
        return cached_stages.weigh_step(downloaded, model, optimized, recipe, workspace, elsewhere)

    def weigh_one(self, candidate: Candidate, downloaded: Downloaded) -> Measurement:
        """Return the measurement of one candidate whose unquantized weights are not at hand."""
        recipe, place = self._recipe, self._recipe.run.place("weigh")
        if place is not None:
            (measured,) = self._measure([candidate], downloaded, None, place)
            return weigh.costed(measured, recipe.weigh, recipe.select.concurrency)
        return weigh.weigh_one(
            candidate,
            downloaded.data,
            recipe.evaluate,
            recipe.weigh,
            self._workspace,
            recipe.select.concurrency,
        )

    def _measure(
        self,
        candidates: Sequence[Candidate],
        downloaded: Downloaded,
        model: Artifact | None,
        place: PoolArgs,
    ) -> list[Measurement]:
        """Return the measurements of all, made side by side."""
        recipe, workspace = self._recipe, self._workspace
        orders = [
            Order(
                cached_stages.candidate_step(candidate, downloaded, model, recipe, workspace),
                StageInputs(candidate=candidate, downloaded=downloaded, model=model),
                place,
                f"weigh {candidate.label}",
            )
            for candidate in candidates
        ]
        outcomes = self._pools.run_all(orders)
        return [
            _named(candidate, outcome)
            for candidate, outcome in zip(candidates, outcomes, strict=True)
        ]


def _named(candidate: Candidate, outcome: Measurement | WeighbridgeError) -> Measurement:
    if isinstance(outcome, Measurement):
        return weigh.named_as(candidate, outcome)
    return weigh.failed(candidate, str(outcome)).model_copy(update={"machine": _NOWHERE})
