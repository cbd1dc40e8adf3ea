"""What makes Prefect's runs of plain functions: the task wrapper, the flow decorator, artifacts."""

import base64
import contextlib
import functools
import logging
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect import flow, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ParameterTypeError
from prefect.flows import Flow
from prefect.states import Completed, Failed, raise_state_exception
from pydantic import ConfigDict, ValidationError, validate_call

from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.progress import Step, listen
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.versions import is_newer, own_version

R = TypeVar("R")
P = ParamSpec("P")

logger = logging.getLogger(__name__)
_TERMINAL_ONLY = {"send_to_api": False}  # the page shows the state itself


def run_stage(
    name: str, call: Callable[[], StageOutcome[R]], description: str = ""
) -> StageOutcome[R]:
    """Run `call` as a task run of the current flow.

    The state of the task run says whether the stage ran (Completed, and how long it took) or was
    Reused, and why. Its page shows the log lines of `weighbridge.*` and the progress of long work.

    Returns:
        What `call` returned.

    Raises:
        WeighbridgeError: what `call` raised; the task run is Failed with that one line.
    """
    # By a list: what a task returns would be kept by Prefect as its result.
    outcomes: list[StageOutcome[R]] = []

    @task(
        name=name,
        task_run_name=name,
        description=description or None,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def stage() -> State[Any]:
        try:
            with listen(_ProgressArtifacts(name)):
                outcomes.append(call())
        except WeighbridgeError as exc:
            # Returned, not raised: of what is raised Prefect logs the traceback.
            return Failed(message=str(exc), data=exc)
        return _finished(name, outcomes[0])

    raise_state_exception(stage(return_state=True))
    return outcomes[0]


def release_flow(
    *, refuses_itself: bool = False, **options: Any
) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Decorate a function as `prefect.flow` does, so that a known error ends the flow as Failed.

    Prefect shows the error's one line without a traceback; whoever calls the flow gets the error
    itself.

    Args:
        refuses_itself: whether the flow looks at whose release asks for it. Else a worker of an
            older release than the one that registered the deployment refuses the run.
        options: of `prefect.flow`.
    """

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        @functools.wraps(function)
        def body(*args: P.args, **kwargs: P.kwargs) -> Any:
            try:
                if not refuses_itself:
                    _refuse_newer_deployment()
                return function(*args, **kwargs)
            except WeighbridgeError as exc:
                return Failed(message=str(exc), data=exc)

        version = own_version() or None
        decorated: Flow[P, R] = flow(persist_result=False, version=version, **options)(body)
        checked = _taken_as_they_are(body)
        decorated.validate_parameters = checked  # type: ignore[assignment,method-assign] # no self
        return decorated

    return decorate


def _taken_as_they_are(function: Callable[..., Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what checks a flow's parameters as Prefect does, but looks for no blocks in them.

    Prefect takes every `$ref` for one of its blocks. In a recipe it is a JSON schema's.
    """

    @functools.cache
    def check() -> Callable[..., dict[str, Any]]:
        # As late as Prefect does it: a model is built for it.
        given = functools.wraps(function)(lambda **arguments: arguments)
        return validate_call(config=ConfigDict(arbitrary_types_allowed=True))(given)

    def validate_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            return check()(**parameters)
        except ValidationError as exc:
            raise ParameterTypeError.from_validation_error(exc) from None

    return validate_parameters


def _refuse_newer_deployment() -> None:
    """Raise Unavailable where a newer release registered the deployment that is run here.

    Its worker would do what an older release does, under the name of the newer one.
    """
    context = FlowRunContext.get()
    deployment = context.flow_run.deployment_id if context and context.flow_run else None
    if deployment is None:
        return
    with get_client(sync_client=True) as client:
        registered = client.read_deployment(deployment)
    if is_newer(registered.version or ""):
        doing = f"running '{registered.name}' on {socket.gethostname()}"
        wrong = f"Weighbridge {registered.version} registered it, this worker is {own_version()}"
        raise Unavailable(doing, wrong, f"install weighbridge>={registered.version} there")


def publish_weighing(
    markdown: str, rows: Sequence[Mapping[str, str]], chart: bytes, name: str = "report"
) -> None:
    """Keep a weighing's report with the current flow run, as three artifacts.

    Args:
        markdown: The report.
        rows: Its figures, as a table.
        chart: A PNG.
        name: Of the artifacts, which Prefect keeps the history of.
    """
    # An image artifact is a URL that the reader's browser loads, and nobody serves our files.
    image = f"data:image/png;base64,{base64.b64encode(chart).decode()}"
    page = f"{markdown.rstrip()}\n\n![Every candidate]({image})\n"
    create_markdown_artifact(
        page, key=_key(name), description="Every candidate, the winner and why"
    )
    create_table_artifact(
        [dict(row) for row in rows], key=_key(f"{name}-table"), description="The report's figures"
    )
    create_image_artifact(image, key=_key(f"{name}-chart"), description="The report's chart")


def publish_report(name: str, markdown: str, rows: Sequence[Mapping[str, str]], about: str) -> None:
    """Keep a report with the current flow run: as Markdown, and its table."""
    create_markdown_artifact(markdown, key=_key(name), description=about)
    create_table_artifact([dict(row) for row in rows], key=_key(f"{name}-table"), description=about)


def _finished(name: str, outcome: StageOutcome[Any]) -> State[Any]:
    if outcome.reused:
        logger.info("reused: %s", outcome.why, extra={**_TERMINAL_ONLY, "stage": name})
        return Completed(name="Reused", message=outcome.why)
    logger.info(
        "%.1f s (%s)", outcome.seconds, outcome.why, extra={**_TERMINAL_ONLY, "stage": name}
    )
    return Completed(message=f"in {outcome.seconds:.1f} s; {outcome.why}")


def _key(name: str) -> str:
    """Return the name as Prefect takes it: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class _ProgressArtifacts:
    """Steps of long work as progress bars on the task run's page; short work leaves none."""

    FIRST_AFTER = 2.0
    """Seconds: nobody opens the page of what is over sooner."""
    EVERY = 3.0
    """Seconds between two updates: each is a request."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._due: dict[str, float] = {}
        self._bars: dict[str, Any] = {}

    def __call__(self, step: Step) -> None:
        if not step.total:
            return
        now = time.monotonic()
        due = self._due.setdefault(step.what, now + self.FIRST_AFTER)
        finished = step.done >= step.total and step.what in self._bars
        if now < due and not finished:
            return
        self._due[step.what] = now + self.EVERY
        self._show(step.what, min(100.0, 100 * step.done / step.total))

    def _show(self, what: str, percent: float) -> None:
        context = TaskRunContext.get()
        if context is None:  # on a thread that Prefect knows nothing of
            return
        with contextlib.suppress(httpx.HTTPError):  # no work fails for its progress bar
            self._send(what, percent, context.task_run)

    def _send(self, what: str, percent: float, run: TaskRun) -> None:
        # The run's own client where Prefect has one: no connection is opened for each update.
        client = get_client(sync_client=True)
        if what in self._bars:
            client.update_artifact(self._bars[what], ArtifactUpdate(data=percent))
            return
        request = ArtifactCreate(
            type="progress",
            key=_key(f"{self._stage}-progress"),
            description=what,
            data=percent,
            task_run_id=run.id,
            flow_run_id=run.flow_run_id,
        )
        self._bars[what] = client.create_artifact(request).id
