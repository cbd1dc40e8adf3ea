"""Runs: one per release, one below it per stage.

Each is found again by what went into it, so that none is made twice.
"""

import hashlib
import json
import logging
import posixpath
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.core.stage_cache import canonical
from weighbridge.registry import leases
from weighbridge.registry.connection import Connection

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities import Run as Recorded

logger = logging.getLogger(__name__)

KEY, STAGE = "weighbridge.key", "weighbridge.stage"
PARENT, NAME, NOTE, SOURCE = (
    "mlflow.parentRunId",
    "mlflow.runName",
    "mlflow.note.content",
    "mlflow.source.name",
)
_FLUSH_AFTER = 1.0
"""Seconds that live metrics may wait for each other: every write to SQLite waits for the disk."""
_LONGEST_PARAMETER = 6000
"""Characters that MLflow takes as the value of a parameter."""
_LONGEST_DESCRIPTION = 8000
"""Characters that MLflow takes as the value of a tag."""
_LONGEST_NAME = 250
_NO_NAME = re.compile(r"[^\w.\- :/]")
"""What no name of a parameter or metric holds."""
_PARAMETERS_AT_ONCE = 100
_METRICS_AT_ONCE = 500
"""MLflow takes 100 parameters and 1000 metrics in one call."""


@dataclass(frozen=True)
class Dataset:
    """Data that a metric was taken on, as MLflow lists it."""

    name: str
    digest: str
    source: str = ""
    context: str = "evaluation"

    @property
    def short(self) -> str:
        """Return the digest as MLflow lists it, which holds 36 characters."""
        return self.digest.removeprefix("sha256:")[:12]


def key_of(stage: str, inputs: Any) -> str:
    """Return what identifies a run: a digest of the stage and everything that went into it."""
    text = json.dumps([stage, canonical(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class MlflowRun:
    """One run. As a context manager it ends the run: as finished, failed or killed."""

    connection: Connection
    experiment: str
    experiment_id: str
    run_id: str
    name: str
    stage: str
    done: bool
    """It was finished before: nothing needs to be written again."""
    continued: bool = False
    """It was begun by an earlier process."""
    _pending: list["Metric"] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)
    _known: dict[tuple[str, str, str], set[int]] = field(default_factory=dict)

    def __enter__(self) -> "MlflowRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: object
    ) -> None:
        if exc is None:
            self.finish()
        else:
            self.finish("FAILED" if isinstance(exc, Exception) else "KILLED")

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; nested ones are flattened to `outer.inner`.

        The same ones again change nothing.
        """
        from mlflow.entities import Param

        flat = [Param(key, value[:_LONGEST_PARAMETER]) for key, value in flatten(params).items()]
        with self._writing("parameters"):
            for batch in _batches(flat, _PARAMETERS_AT_ONCE):
                self.connection.client.log_batch(self.run_id, params=batch)

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log live metrics of one step, gathered for up to a second.

        A step that is there already is left alone.
        """
        self._add(step, metrics)
        if time.monotonic() - self._flushed > _FLUSH_AFTER:
            self.flush()

    def log_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log the whole curve, rows of numbers with a `step`; only what is missing is written."""
        for row in rows:
            self._add(int(row["step"]), {key: value for key, value in row.items() if key != "step"})
        self.flush()

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        dataset: Dataset | None = None,
        model_id: str | None = None,
        step: int = 0,
    ) -> None:
        """Log final figures, once per run: on a data set and for a logged model if given."""
        self._add(step, metrics, dataset, model_id)
        self.flush()

    def log_dataset(self, dataset: Dataset) -> None:
        """List a data set among the run's inputs."""
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag

        source, profile = (
            json.dumps({"uri": dataset.source}),
            json.dumps({"digest": dataset.digest}),
        )
        entity = MlflowDataset(dataset.name, dataset.short, "uri", source, profile=profile)
        with self._writing("data"):
            tag = InputTag("mlflow.data.context", dataset.context)
            self.connection.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, [tag])])

    def log_models(self, outputs: Iterable[str] = (), inputs: Iterable[str] = ()) -> None:
        """Link logged models to the run, as its outputs or its inputs."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        with self._writing("models"):
            recorded = self.connection.client.get_run(self.run_id)
            linked_outputs = recorded.outputs.model_outputs if recorded.outputs else []
            linked_inputs = recorded.inputs.model_inputs if recorded.inputs else []
            # MLflow would list one that is linked again twice.
            known_outputs = {model.model_id for model in linked_outputs}
            known_inputs = {model.model_id for model in linked_inputs}
            new_outputs = [model_id for model_id in outputs if model_id not in known_outputs]
            new_inputs = [model_id for model_id in inputs if model_id not in known_inputs]
            if new_outputs:
                self.connection.client.log_outputs(
                    self.run_id, [LoggedModelOutput(model_id, 0) for model_id in new_outputs]
                )
            if new_inputs:
                self.connection.client.log_inputs(
                    self.run_id, models=[LoggedModelInput(model_id) for model_id in new_inputs]
                )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        with self._writing("tags"):
            self.connection.client.log_batch(
                self.run_id, tags=[RunTag(key, value) for key, value in tags.items()]
            )

    def describe(self, markdown: str, whole: str) -> None:
        """Set the run's description in the UI; of a long one the beginning, and where the whole is,
        as a sentence.
        """
        if len(markdown) > _LONGEST_DESCRIPTION:
            # MLflow would cut it within a word, and warn whoever waits for the release.
            lines, _, _ = markdown[: _LONGEST_DESCRIPTION - len(whole) - 2].rpartition("\n")
            markdown = f"{lines}\n\n{whole}"
        self.set_tags({NOTE: markdown})

    def attach(self, file: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        with self._writing(file.name):
            self.connection.client.log_artifact(self.run_id, str(file), folder or None)

    def keep_text(self, text: str, name: str) -> None:
        """Keep a text with the run, as a file."""
        with self._writing(name):
            self.connection.client.log_text(self.run_id, text, name)

    def flush(self) -> None:
        """Write the live metrics that still wait."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        with self._writing("metrics"):
            for batch in _batches(pending, _METRICS_AT_ONCE):
                self.connection.client.log_batch(self.run_id, metrics=batch)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run. One that was finished before is left alone, unless it fails now."""
        self.flush()
        if self.done and status == "FINISHED":
            return
        leases.keeper.release(self.run_id)
        with self._writing("its end"):
            self.connection.client.set_terminated(self.run_id, status)
        self.done = status == "FINISHED"

    def _add(
        self,
        step: int,
        metrics: Mapping[str, Any],
        dataset: Dataset | None = None,
        model_id: str | None = None,
    ) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        dataset_fields = (dataset.name, dataset.short) if dataset else (None, None)
        for label, value in metrics.items():
            # Labels are those of anybody's metrics: `hit@1` is a name that MLflow refuses.
            key = _NO_NAME.sub("_", label)
            logged_steps = self._steps(key, model_id, dataset)
            # NaN, which equals nothing, would make MLflow refuse the whole batch.
            if isinstance(value, int | float) and value == value and step not in logged_steps:
                logged_steps.add(step)
                self._pending.append(
                    Metric(key, float(value), now, step, model_id, *dataset_fields)
                )

    def _steps(self, key: str, model_id: str | None, dataset: Dataset | None) -> set[int]:
        """Return the steps at which this metric is there already, written by this process or by the
        one that began the run.
        """
        series = (key, model_id or "", dataset.short if dataset else "")
        if series not in self._known:
            self._known[series] = (
                self._steps_in_mlflow(key, model_id, dataset) if self.continued else set()
            )
        return self._known[series]

    def _steps_in_mlflow(self, key: str, model_id: str | None, dataset: Dataset | None) -> set[int]:
        with self._writing(key):
            if model_id is None:
                return {
                    point.step
                    for point in self.connection.client.get_metric_history(self.run_id, key)
                }
            # MLflow gives a run's history without the models and data sets that its points belong
            # to.
            points = self.connection.client.get_logged_model(model_id).metrics or []
        digest = dataset.short if dataset else None
        same = [point for point in points if (point.key, point.run_id) == (key, self.run_id)]
        return {point.step for point in same if (point.dataset_digest or None) == digest}

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        with self.connection.doing(f"writing {what} of run '{self.name}' into MLflow"):
            yield


def text_of(connection: Connection, run_id: str, name: str) -> str:
    """Return a text that was kept with a run.

    Raises:
        Unavailable: there is no such run or text, or it cannot be fetched.
    """
    with (
        connection.doing(f"reading {name} of run {run_id} from MLflow"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        return Path(connection.client.download_artifacts(run_id, name, scratch)).read_text()


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as `outer.inner`; None and empty ones are left out.

    A mapping with keys that no parameter can be called by, such as `$ref` of a JSON schema, is one
    parameter, as JSON.
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            inner = flatten(value, f"{prefix}{key}.")
            flat |= inner if all(map(_is_name, inner)) else {f"{prefix}{key}": json.dumps(value)}
        elif value is not None and value not in ("", []):
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _is_name(name: str) -> bool:
    """Whether MLflow takes this as the name of a parameter."""
    # It is a path, too: `a/../b` would be another one.
    return (
        len(name) <= _LONGEST_NAME
        and not _NO_NAME.search(name)
        and posixpath.normpath(name) == name
    )


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def begin(
    connection: Connection,
    experiment: str,
    stage: str,
    inputs: Any,
    *,
    name: str,
    parent: MlflowRun | None = None,
    tags: Mapping[str, str] | None = None,
) -> MlflowRun:
    """Begin the run of a stage with these inputs, or go on with the one that is there.

    It is gone on with whatever became of it: finished, failed or killed.
    """
    experiment_id, key = connection.experiment(experiment), key_of(stage, inputs)
    with connection.doing(f"opening run '{name}' in MLflow"), connection.alone(f"run-{key}"):
        recorded = _find(connection, experiment_id, key)
        if recorded is None:
            run_tags = {
                STAGE: stage,
                KEY: key,
                **leases.tags(),
                SOURCE: "weighbridge",
                NAME: name,
                **(tags or {}),
            }
            created = connection.client.create_run(
                experiment_id, run_name=name, tags={**run_tags, **_parent(parent)}
            )
            made = created.info.run_id
            leases.keeper.hold(made, leases.of_run(connection.client, made))
            return MlflowRun(connection, experiment, experiment_id, made, name, stage, done=False)
        run_id, done = recorded.info.run_id, recorded.info.status == "FINISHED"
        if not done:
            # The owner first: a run that says RUNNING under an owner who is dead would be marked as
            # killed.
            for name_of_tag, value in leases.tags().items():
                connection.client.set_tag(run_id, name_of_tag, value)
            connection.client.update_run(run_id, status="RUNNING")
            leases.keeper.hold(run_id, leases.of_run(connection.client, run_id))
        return MlflowRun(
            connection, experiment, experiment_id, run_id, name, stage, done, continued=True
        )


def _parent(parent: MlflowRun | None) -> dict[str, str]:
    return {PARENT: parent.run_id} if parent else {}


def _find(connection: Connection, experiment_id: str, key: str) -> "Recorded | None":
    """Return a finished run, else the one that got furthest: the newest."""
    runs = connection.client.search_runs(
        [experiment_id],
        f"tags.`{KEY}` = '{key}'",
        max_results=20,
        order_by=["attributes.start_time ASC"],
    )
    finished = [run for run in runs if run.info.status == "FINISHED"]
    return next(iter([*finished, *reversed(runs)]), None)


def mark_killed(connection: Connection, experiment: str) -> list[str]:
    """End every run that says RUNNING though its process is gone; return their ids."""
    experiment_id = connection.experiment(experiment)
    killed = []
    with connection.doing("looking for killed runs in MLflow"):
        for run in connection.client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
            if leases.is_gone(run.data.tags):
                connection.client.set_terminated(run.info.run_id, "KILLED")
                logger.info("run '%s' was killed; marked so in MLflow", run.info.run_name)
                killed.append(run.info.run_id)
    return killed
