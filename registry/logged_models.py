"""Logged models: an artifact's files in MLflow without loading weights, and without copying where a
link will do.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import Unavailable
from weighbridge.core.progress import track
from weighbridge.core.store import link_or_copy
from weighbridge.registry.connection import Connection
from weighbridge.registry.runs import MlflowRun

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

logger = logging.getLogger(__name__)

IDENTITY = "weighbridge.identity"
OWN = "weighbridge"
"""Folder of a logged model that holds what we say about it, beside the artifact's own files."""
_REGISTERED = "mlflow.modelVersions"


def ensure(
    connection: Connection,
    run: MlflowRun,
    *,
    name: str,
    identity: str,
    artifact: Artifact | None,
    tags: Mapping[str, str],
    params: Mapping[str, str],
) -> "LoggedModel":
    """Return the logged model with this identity, whole and ready.

    It is made where there is none, and finished where an earlier process left it half done.
    """
    model = find(connection, run.experiment_id, identity)
    if model is None:
        # In single steps: MLflow's `log_model` would load the weights.
        model = connection.client.create_logged_model(
            run.experiment_id,
            name=name,
            source_run_id=run.run_id,
            tags={**tags, IDENTITY: identity},
            params=dict(params),
            model_type=tags.get("role", ""),
        )
    if str(model.status) != "READY":
        if artifact is not None:
            upload(connection, model, artifact)
        model = connection.client.finalize_logged_model(model.model_id, "READY")
    return model


def find(connection: Connection, experiment_id: str, identity: str) -> "LoggedModel | None":
    """Return the oldest logged model with this identity; a ready one before one that is not."""
    models = connection.client.search_logged_models(
        [experiment_id], f"tags.`{IDENTITY}` = '{identity}'"
    )
    return min(
        models,
        key=lambda model: (str(model.status) != "READY", model.creation_timestamp),
        default=None,
    )


def note_registered(connection: Connection, model: "LoggedModel", name: str, version: str) -> None:
    """Note on the logged model which version it became.

    MLflow itself does so on a server, but not where it is opened as a database.
    """
    entry = {"name": name, "version": str(version)}
    registered_versions = json.loads(model.tags.get(_REGISTERED) or "[]")
    if entry not in [
        {"name": item["name"], "version": str(item["version"])} for item in registered_versions
    ]:
        connection.client.set_logged_model_tags(
            model.model_id, {_REGISTERED: json.dumps([*registered_versions, entry])}
        )


def upload(connection: Connection, model: "LoggedModel", artifact: Artifact) -> None:
    """Put an artifact's files where MLflow keeps those of a logged model.

    On one file system they are links, else copies.
    """
    files = sorted(path for path in artifact.path.rglob("*") if path.is_file())
    if (folder := local_folder(model.artifact_location)) is not None:
        for path in files:
            # A link is safe: nobody may write to the store's files.
            link_or_copy(path, folder / path.relative_to(artifact.path))
        return
    done = 0
    with track(f"uploading {model.name} to MLflow", artifact.size, "B") as update:
        for path in files:
            folder_inside = path.relative_to(artifact.path).parent.as_posix()
            connection.client.log_model_artifact(
                model.model_id, str(path), None if folder_inside == "." else folder_inside
            )
            update(done := done + path.stat().st_size)


def attach(connection: Connection, model_id: str, files: Mapping[str, Path | str]) -> None:
    """Keep files (paths, or text) in our own folder of a logged model, replacing older ones."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in files.items():
            path = Path(scratch) / name
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_text(content)
        connection.client.log_model_artifacts(model_id, scratch, OWN)


def read(connection: Connection, model_id: str, name: str) -> str:
    """Return a text from our own folder of a logged model.

    Raises:
        Unavailable: it is not there, or cannot be fetched.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return fetch(connection, model_id, Path(scratch), f"{OWN}/{name}").read_text()


def fetch(connection: Connection, model_id: str, to: Path, path: str = "") -> Path:
    """Download a logged model's files, or one of them; return where they are.

    Where MLflow keeps them on this machine, they are not copied.

    Raises:
        Unavailable: it does not hold them.
    """
    from mlflow.artifacts import download_artifacts

    location = connection.client.get_logged_model(model_id).artifact_location
    if (folder := local_folder(location)) is not None:
        if not (folder / path).exists():
            raise Unavailable(
                f"reading '{path}' of logged model {model_id}", f"{folder} does not hold it"
            )
        return folder / path
    uri = f"{location.rstrip('/')}/{path}".rstrip("/")
    return Path(download_artifacts(artifact_uri=uri, dst_path=str(to), tracking_uri=connection.uri))


def remove_files(connection: Connection, model_id: str) -> bool:
    """Remove the artifact's files of a logged model; what we say about it stays.

    Returns:
        Whether they were on this machine: those in a bucket or at a server stay.
    """
    folder = folder_here(connection, model_id)
    if folder is None:
        return False
    for path in list(own_files(folder)):
        path.unlink()
    return True


def folder_here(connection: Connection, model_id: str) -> Path | None:
    """Return the folder of a logged model on this machine; None where it is elsewhere."""
    return local_folder(connection.client.get_logged_model(model_id).artifact_location)


def own_files(folder: Path) -> Iterator[Path]:
    """Return the artifact's files in a logged model's folder: all but those of our own folder."""
    return (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != OWN
    )


def local_folder(location: str) -> Path | None:
    """Return the folder that a location names on this machine; None for a bucket or a server."""
    parsed = urlparse(location)
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(location) if not parsed.scheme and location.startswith("/") else None
