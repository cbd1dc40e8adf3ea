"""Measurements of candidates: figures on the candidate's logged model, the whole document in its
files.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weighbridge.registry import logged_models, versions
from weighbridge.registry.connection import Connection
from weighbridge.registry.runs import Dataset, MlflowRun
from weighbridge.registry.versions import CANDIDATE, MEASURED, Version

DOCUMENT = "measurement.json"
_LABEL, _DIGEST = "candidate", "weighbridge.measurement"
_TAKEN: Final = re.compile(r"[/\w.\- :]{1,200}")
"""Labels that MLflow takes as a part of a tag's name. Those of candidates that differ in options,
such as `llama_cpp(threads=2)/gguf-Q8_0`, are none: they go into the tag's value.
"""


@dataclass(frozen=True)
class MeasuredFigures:
    """Numbers that were taken on one data set (or on none)."""

    values: Mapping[str, float]
    dataset: Dataset | None = None


def record(
    connection: Connection,
    run: MlflowRun,
    version: Version,
    label: str,
    *,
    document: str,
    figures: Sequence[MeasuredFigures],
    params: Mapping[str, str],
    files: Mapping[str, Path],
) -> str:
    """Put a measurement on the candidate's logged model; return its id.

    The same document again changes nothing.
    """
    digest = hashlib.sha256(document.encode()).hexdigest()
    with connection.doing(f"recording the measurement of '{label}' in MLflow"):
        model_id = _candidate(connection, run, version, label, params)
        recorded = connection.client.get_logged_model(model_id).tags.get(_DIGEST)
        # Files first, then their digest: where a process is killed between, the next one writes
        # them again.
        if recorded != digest:
            logged_models.attach(connection, model_id, {DOCUMENT: document, **files})
            connection.client.set_logged_model_tags(model_id, {_DIGEST: digest, **_as_tags(params)})
        run.log_models(inputs=[model_id])
        for measured in figures:
            run.log_metrics(measured.values, measured.dataset, model_id)
        # Last: who finds this tag finds the whole measurement.
        versions.tag(connection, version, _found_by(label, model_id))
    return model_id


def _found_by(label: str, model_id: str) -> dict[str, str]:
    """Return the tag of a version by which a measurement is found."""
    if _TAKEN.fullmatch(label):
        return {f"{MEASURED}{label}": model_id}
    return {f"{MEASURED}{hashlib.sha256(label.encode()).hexdigest()[:16]}": f"{model_id} {label}"}


def _candidate(
    connection: Connection, run: MlflowRun, version: Version, label: str, params: Mapping[str, str]
) -> str:
    """Return the id of the candidate's logged model.

    The first engine that a variant is weighed on has the variant's own, every other one of its own.
    """
    # Two engines that ask at once would both take the variant's own.
    with connection.alone(f"candidate-{version.model_id}"):
        variant_model = connection.client.get_logged_model(version.model_id)
        if variant_model.tags.get(_LABEL, label) == label:
            connection.client.set_logged_model_tags(version.model_id, {_LABEL: label})
            return version.model_id
        identity = hashlib.sha256(f"{version.model_id} {label}".encode()).hexdigest()[:32]
        tags = {
            "role": "candidate",
            _LABEL: label,
            "digest": version.digest,
            "variant_model_id": version.model_id,
        }
        model = logged_models.ensure(
            connection,
            run,
            # What MLflow refuses in the name of a logged model.
            name=re.sub(r"[/:.%\"']", "-", label),
            identity=identity,
            artifact=None,
            tags=tags,
            params=params,
        )
        logged_models.note_registered(connection, model, version.name, version.version)
        return str(model.model_id)


def _as_tags(params: Mapping[str, str]) -> dict[str, str]:
    """Return a candidate's parameters as tags: those of a logged model cannot change, these can."""
    return {key: value for key, value in params.items() if value}


def labels(version: Version) -> dict[str, str]:
    """Return the candidates this version was weighed as: label to logged model."""
    found = {
        key.removeprefix(MEASURED): value.partition(" ")
        for key, value in version.tags.items()
        if key.startswith(MEASURED)
    }
    return {label or named: model_id for named, (model_id, _, label) in found.items()}


def read(connection: Connection, version: Version, label: str = "") -> str | None:
    """Return the measurement's document, or None where there is none.

    It is that of the label, else of the candidate that won, else of the only one.
    """
    model_ids = labels(version)
    candidate = label or version.tags.get(CANDIDATE, "") or next(iter(model_ids), "")
    if candidate not in model_ids:
        return None
    with connection.doing(f"reading the measurement of '{candidate}' from MLflow"):
        return logged_models.read(connection, model_ids[candidate], DOCUMENT)
