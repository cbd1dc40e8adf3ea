"""What a run would do, stage by stage, without doing any of it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel

from weighbridge.configs.recipe import Recipe
from weighbridge.core.disk import free_bytes
from weighbridge.core.environments import locate
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages, evidence_forecast, pool_checks
from weighbridge.flows.prefect_server import api_that_stays
from weighbridge.flows.remote_stages import store_of
from weighbridge.rollout.deploy_args import answers_of_steps
from weighbridge.serving.engines.base import engine_for
from weighbridge.tasks import model_check, optimize
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.download import Downloaded, Pinned, missing_bytes, pin
from weighbridge.tasks.finetune_args import FinetuneArgs
from weighbridge.tasks.optimizers.base import load_optimizer
from weighbridge.tasks.rows_at_hand import count_test_rows, rows_at_hand
from weighbridge.tasks.selection import proving_rows
from weighbridge.tasks.training_memory import training_memory

Action = Literal["reuse", "run", "wait"]
STAGES: Final = (
    "download",
    "finetune",
    "evaluate",
    "optimize",
    "weigh",
    "repeat",
    "select",
    "package",
    "deploy",
)
ROWS_LOOKED_AT: Final = 10_000
"""Rows whose lengths tell how much memory training takes."""
R = TypeVar("R")


class PlannedStage(BaseModel):
    """One line of a plan."""

    stage: str
    action: Action
    """`wait`: what it would do depends on a stage that has to run first."""
    why: str
    needs: list[str] = []


class Plan(BaseModel):
    """A recipe's stages in order, and the room they have."""

    recipe: str
    stages: list[PlannedStage]
    disk_free: int
    """Bytes free where artifacts are kept."""
    evidence: list[str] = []
    """What the data can show, as far as they are known."""


class _Blocked(Exception):
    """A stage has to run before anything can be said of those after it."""


def plan(recipe: Recipe, workspace: Workspace | None = None) -> Plan:
    """Forecast every stage. Nothing is downloaded, built, registered or served.

    Raises:
        BadInput: a source does not exist, a variant cannot be made of the model, or there is no
            work pool of that name.
        Unavailable: a source does not answer, or no worker of a pool is alive.
    """
    workspace = workspace or Workspace()
    _check_pools(recipe, workspace)
    stages: list[PlannedStage] = []
    forecaster = _Forecaster(recipe, workspace)
    try:
        for stage in forecaster.stages():
            stages.append(stage)
    except _Blocked:
        pass
    first_to_run = next((stage.stage for stage in stages if stage.action == "run"), "")
    waiting = [
        PlannedStage(
            stage=name,
            action="wait",
            why=f"follows {first_to_run}",
            needs=_needs(name, recipe, workspace),
        )
        for name in _stages_of(recipe)[len(stages) :]
    ]
    free = free_bytes(workspace.settings.home)
    return Plan(
        recipe=recipe.name, stages=stages + waiting, disk_free=free, evidence=forecaster.evidence
    )


def _check_pools(recipe: Recipe, workspace: Workspace) -> None:
    """Check the pools of a recipe, as far as there is a Prefect that can be asked."""
    if not recipe.run.pools():
        return
    store_of(workspace)
    with api_that_stays(workspace.settings) as api:
        if api is not None:
            pool_checks.check(recipe.run, workspace)


def _stages_of(recipe: Recipe) -> list[str]:
    return [name for name in STAGES if name != "finetune" or recipe.finetune != "none"]


class _Forecaster:
    """Goes through the stages as the release flow does, and looks instead of running."""

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.last: Any = None
        """Result of the stage that was forecast last."""
        self.evidence: list[str] = []

    def stages(self) -> Iterator[PlannedStage]:
        """Return one line per stage whose inputs are known.

        Raises:
            _Blocked: after the first stage that has to run.
        """
        recipe, workspace = self.recipe, self.workspace
        pinned = pin(recipe.download, workspace)
        yield from self._forecast(
            cached_stages.download_step(pinned, recipe, workspace), self._before_download(pinned)
        )
        downloaded = self.last
        # As in a release: what cannot be made is told before anything is trained.
        model_check.check(downloaded.model, downloaded.data, workspace)
        optimize.check(downloaded.model.path, recipe.optimize, workspace, dry=True)
        rows = read_rows(downloaded.data, "test")
        proving_rows.check_rows(rows, recipe.select, recipe.evaluate)
        self._tell_evidence(len(rows), downloaded.data.digest)
        model = downloaded.model
        if recipe.finetune != "none":
            yield from self._forecast(
                cached_stages.finetune_step(downloaded, recipe.finetune, workspace),
                _finetune_needs(downloaded, recipe.finetune),
            )
            model = self.last.merged
        yield from self._forecast(cached_stages.evaluate_step(downloaded, model, recipe, workspace))
        evaluated = self.last
        yield from self._forecast(cached_stages.optimize_step(downloaded, model, recipe, workspace))
        yield from self._forecast(
            cached_stages.weigh_step(downloaded, model, self.last, recipe, workspace)
        )
        weighed = self.last
        # Without the champion, which would have to be measured first.
        yield from self._forecast(
            cached_stages.repeat_step(downloaded, evaluated, weighed, None, recipe, workspace)
        )
        yield from self._forecast(cached_stages.select_step(self.last, evaluated, None, recipe))
        winner = cached_stages.winner_of(self.last, weighed)
        if winner is None:
            return
        lineage = cached_stages.lineage_of(downloaded, model, recipe)
        yield from self._forecast(cached_stages.package_step(winner, lineage, recipe, workspace))
        yield PlannedStage(
            stage="deploy",
            action="run",
            why="does nothing where the winner serves already",
            needs=_needs("deploy", recipe, workspace),
        )

    def _before_download(self, pinned: Pinned) -> Iterator[str]:
        """Look at the rows, as far as they are at hand, and return what the download needs.

        Raises:
            BadInput: the run would refuse the rows, or they are too few to show the limits.
        """
        recipe, workspace = self.recipe, self.workspace
        args, limits = recipe.download.data, (recipe.select, recipe.evaluate)
        splits, unread = rows_at_hand(pinned, args, workspace.store)
        if splits:
            proving_rows.check_rows(splits["test"], *limits)
            self._tell_evidence(len(splits["test"]), "")
        else:
            count = count_test_rows(pinned, args)
            # Of rows that are cut off train, the number is only about right.
            if count and args.test:
                proving_rows.check_count(count, *limits)
            self._tell_evidence(count or 0, "")
            self.evidence.append(f"rows are checked when the data are prepared: {unread}")
        missing = missing_bytes(pinned, recipe.download, workspace.store)
        yield f"{missing / 1e6:,.0f} MB to fetch and to keep"

    def _tell_evidence(self, rows: int, data: str) -> None:
        self.evidence = [
            *evidence_forecast.lines(rows, self.recipe, data, self.workspace),
            *evidence_forecast.of_speed(self.recipe, data, self.workspace),
        ]

    def _forecast(
        self, step: cached_stages.CachedStage[Any], needs: Iterable[str] = ()
    ) -> Iterator[PlannedStage]:
        """Return the line of a stage; `needs` is asked only where it has to run."""
        forecast = step.forecast(self.workspace)
        if forecast.value is not None:
            self.last = forecast.value
            yield PlannedStage(stage=step.name, action="reuse", why=forecast.why)
            return
        stage_needs = [*needs, *_needs(step.name, self.recipe, self.workspace)]
        yield PlannedStage(stage=step.name, action="run", why=forecast.why, needs=stage_needs)
        raise _Blocked


def _finetune_needs(downloaded: Downloaded, args: FinetuneArgs) -> Iterator[str]:
    rows = read_rows(downloaded.data, "train", ROWS_LOOKED_AT)
    memory = training_memory(downloaded.model.path, rows, args)
    yield (
        f"about {memory / 1e9:,.1f} GB of memory for training, "
        f"{downloaded.model.size / 1e9:,.1f} GB of disk for the result"
    )


def _needs(stage: str, recipe: Recipe, workspace: Workspace) -> list[str]:
    """Return the environments a stage works in, and whether they are there; of a deployment the
    answers that it takes.
    """
    if stage == "deploy":
        return [answers_of_steps(recipe.deploy.rollout)]
    if place := recipe.run.place(stage):
        # Its environments are a matter of the pool's machines.
        return [f"a worker of work pool {place.pool}"]
    locks: dict[str, Path] = {}
    if stage == "optimize":
        plugins = [load_optimizer(variant.kind) for variant in recipe.optimize.variants]
        locks = {plugin.lock.stem: plugin.lock for plugin in plugins if plugin.lock}
    if stage == "weigh":
        engines = [engine_for(args) for args in recipe.weigh.engines]
        used = [engine.lock() for engine in engines if engine.record() is None]
        locks = {lock.stem: lock for lock in used}
    return [_environment(lock, workspace) for lock in locks.values()]


def _environment(lock: Path, workspace: Workspace) -> str:
    environment, whole = locate(lock, workspace.settings.cache)
    return f"environment of {environment.name} ({'installed' if whole else 'will be installed'})"
