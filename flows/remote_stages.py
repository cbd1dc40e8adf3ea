"""The stages that a work pool may run: what each is handed, and how it is made out of that.

What is handed over, and what comes back, are documents in the shared store, named by their digest:
Prefect is told digests alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import Artifact, artifacts_in
from weighbridge.core.errors import BadInput
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages
from weighbridge.flows.cached_stages import CachedStage
from weighbridge.tasks.download import Downloaded, Pinned
from weighbridge.tasks.evaluate import Evaluated
from weighbridge.tasks.measurement import Candidate, Measurement
from weighbridge.tasks.optimize import Optimized
from weighbridge.tasks.weigh import Weighed

_DOCUMENT: Final = "document.jsonl"
NEEDS_A_STORE: Final = "set WEIGHBRIDGE_STORE=s3://bucket/prefix, here and for the pools' workers"


class StageInputs(BaseModel):
    """The results of earlier stages that a stage works on; each stage takes some of them."""

    model_config = ConfigDict(frozen=True)

    pinned: Pinned | None = None
    downloaded: Downloaded | None = None
    model: Artifact | None = None
    optimized: Optimized | None = None
    candidate: Candidate | None = None
    evaluated: Evaluated | None = None
    weighed: Weighed | None = None
    champion: Measurement | None = None
    lineage: dict[str, str] = {}


def step_of(
    stage: str, inputs: StageInputs, recipe: Recipe, workspace: Workspace
) -> CachedStage[Any]:
    """Return a stage as this process would run it.

    Raises:
        BadInput: no such stage is known here.
    """
    make = _STEPS.get(stage)
    if make is None:
        raise BadInput(f"running stage {stage}", "this release has no such stage to hand over")
    return make(workspace.store.bind(inputs), recipe, workspace)


def _finetune(given: Any, recipe: Recipe, workspace: Workspace) -> CachedStage[Any]:
    if recipe.finetune == "none":
        raise BadInput("running stage finetune", "the recipe has none")
    return cached_stages.finetune_step(given.downloaded, recipe.finetune, workspace)


# Whoever hands a stage over fills in what it takes: `Any`, not one check for every field.
_Make = Callable[[Any, Recipe, Workspace], CachedStage[Any]]
_STEPS: Final[Mapping[str, _Make]] = {
    "download": lambda given, recipe, workspace: cached_stages.download_step(
        given.pinned, recipe, workspace
    ),
    "finetune": _finetune,
    "evaluate": lambda given, recipe, workspace: cached_stages.evaluate_step(
        given.downloaded, given.model, recipe, workspace
    ),
    "optimize": lambda given, recipe, workspace: cached_stages.optimize_step(
        given.downloaded, given.model, recipe, workspace
    ),
    "weigh": lambda given, recipe, workspace: cached_stages.weigh_step(
        given.downloaded, given.model, given.optimized, recipe, workspace
    ),
    "weigh.candidate": lambda given, recipe, workspace: cached_stages.candidate_step(
        given.candidate, given.downloaded, given.model, recipe, workspace
    ),
    "repeat": lambda given, recipe, workspace: cached_stages.repeat_step(
        given.downloaded, given.evaluated, given.weighed, given.champion, recipe, workspace
    ),
    "package": lambda given, recipe, workspace: cached_stages.package_step(
        given.candidate, given.lineage, recipe, workspace
    ),
}


def store_of(workspace: Workspace) -> SharedStore:
    """Return the store by which processes on several machines hand over. Raises BadInput."""
    if workspace.shared is None:
        raise BadInput(
            "handing stages over to work pools", "WEIGHBRIDGE_STORE is not set", NEEDS_A_STORE
        )
    return workspace.shared


def share_document(value: BaseModel, workspace: Workspace) -> str:
    """Put a document into the shared store, after the artifacts that it names; return its digest.

    Raises:
        BadInput: the bucket does not exist, or the credentials are refused.
        Unavailable: the service does not answer.
    """
    shared = store_of(workspace)
    for artifact in artifacts_in(value):
        shared.push(artifact.digest, workspace.store)
    with workspace.store.scratch() as scratch:
        (scratch / _DOCUMENT).write_text(value.model_dump_json() + "\n")
        document = workspace.store.add(scratch, "jsonl")
    shared.push(document.digest, workspace.store)
    return document.digest


def read_document(digest: str, workspace: Workspace) -> str:
    """Return a document as JSON. Raises Unavailable where it is nowhere."""
    return (workspace.store.locate(digest) / _DOCUMENT).read_text()
