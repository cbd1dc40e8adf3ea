"""Stage: what a worker of a work pool runs when a release hands one of its stages over.

Its flow run is a child of the release's. By labels it says that it lives, and what came of it:
states of Prefect's tell neither, where results are not kept in Prefect.
"""

import contextlib
import contextvars
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run
from pydantic import BaseModel, TypeAdapter

from weighbridge.configs.recipe import Recipe
from weighbridge.core.artifact import artifacts_in
from weighbridge.core.environments import one_at_a_time
from weighbridge.core.errors import BadInput, WeighbridgeError, error_from
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.versions import own_version
from weighbridge.core.workspace import Workspace
from weighbridge.flows.cached_stages import CachedStage
from weighbridge.flows.prefect_adapter import release_flow, run_stage
from weighbridge.flows.remote_stages import (
    StageInputs,
    read_document,
    share_document,
    step_of,
    store_of,
)

FLOW: Final = "stage"
ENTRYPOINT: Final = "weighbridge.flows.stage.stage"
LEASE: Final = "weighbridge.lease"
"""Label: changes as long as the process lives."""
HOST: Final = "weighbridge.host"
"""Label: the machine that it runs on."""
RESULT: Final = "weighbridge.result"
"""Label: digest of the document that holds what came of it."""
ERROR: Final = "weighbridge.error"
"""Label: a known error, as JSON."""
RENEWED_EVERY: Final = 10.0
_ONE_AT_A_TIME: Final = ("weigh", "weigh.candidate", "repeat")
"""Stages that would measure each other."""

logger = logging.getLogger(__name__)


class StageResult(BaseModel):
    """What a stage gave on another machine."""

    value: Any
    """As JSON: whoever asked knows its type."""


@release_flow(name=FLOW, flow_run_name="{title}", refuses_itself=True)
def stage(
    name: str,
    title: str,
    recipe: dict[str, Any],
    inputs: str,
    store: str,
    release: str,
    version: int,
) -> None:
    """Run one stage of a release that was begun elsewhere.

    Args:
        name: of the stage.
        title: of this run's page.
        recipe: of the release. No model: another release of ours may know other fields.
        inputs: digest of the document with what the stage works on.
        store: shared store that whoever asks looks into.
        release: version of Weighbridge that asks.
        version: of the stage there.
    """
    run = UUID(str(flow_run.get_id()))
    with _told(run):
        with alive(run):
            workspace = Workspace()
            _check(release, store, workspace)
            given = StageInputs.model_validate_json(read_document(inputs, workspace))
            step = step_of(name, given, Recipe.model_validate(recipe), workspace)
            if step.version != version:
                wrong = f"its stage {name} is of version {step.version}, not {version}"
                raise _another_release(release, wrong)
            digest = _run(name, step, workspace)
        _label(run, {RESULT: digest})


def _run(name: str, step: CachedStage[Any], workspace: Workspace) -> str:
    """Run the stage; return the digest of the document that holds its result."""

    def call() -> StageOutcome[Any]:
        with _alone_on_this_machine() if name in _ONE_AT_A_TIME else nullcontext():
            return step.run(workspace)

    outcome = run_stage(name, call)
    # Those of a result that is not kept are not shared by its stage.
    for artifact in artifacts_in(outcome.value):
        store_of(workspace).push(artifact.digest, workspace.store)
    value = TypeAdapter(step.result).dump_python(outcome.value, mode="json")
    return share_document(StageResult(value=value), workspace)


def error_of(labels: Mapping[str, Any]) -> WeighbridgeError | None:
    """Return the known error that a run has ended with."""
    try:
        return error_from(labels[ERROR])
    except (KeyError, TypeError, ValueError):
        return None


@contextlib.contextmanager
def alive(run: UUID, every: float = RENEWED_EVERY) -> Iterator[None]:
    """Say within the block that this process lives: whoever waits takes it for dead otherwise."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(every):
            # The work does not end for it: whoever waits is patient for several times as long.
            with contextlib.suppress(httpx.HTTPError, PrefectException):
                _label(run, {LEASE: time.time()})

    _label(run, {LEASE: time.time(), HOST: socket.gethostname()})
    # Prefect keeps its settings in a context variable, which a new thread does not have.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(renew,), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        # Labels are read, changed and written back by Prefect: one at a time.
        thread.join()


@contextlib.contextmanager
def _told(run: UUID) -> Iterator[None]:
    """Let whoever waits know of a known error as it is, with its kind."""
    try:
        yield
    except WeighbridgeError as exc:
        _label(run, {ERROR: exc.as_json()})
        raise


def _label(run: UUID, labels: dict[str, Any]) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(run, labels)


def _check(release: str, store: str, workspace: Workspace) -> None:
    """Refuse to work for another release, or beside the store that is looked into."""
    if release != own_version():
        raise _another_release(release, f"it is {own_version()}")
    if store_of(workspace).location.uri != store:
        raise BadInput(
            f"running a stage on {socket.gethostname()}",
            f"its WEIGHBRIDGE_STORE is {workspace.settings.store}, the flow's {store}",
            "give the worker the same",
        )


def _another_release(release: str, wrong: str) -> BadInput:
    return BadInput(
        f"running a stage of Weighbridge {release} on {socket.gethostname()}",
        wrong,
        f"install there: pip install weighbridge=={release}",
    )


def _alone_on_this_machine() -> AbstractContextManager[None]:
    """Keep others out that would be measured, too, by the same user of this machine."""
    # Not in a home: workers of one machine may have several.
    lock = Path(tempfile.gettempdir()) / f"weighbridge-weighing-{os.getuid()}"
    return one_at_a_time(lock, "weighing on this machine")
