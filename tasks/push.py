"""Artifacts in a bucket: push one to `s3://bucket/prefix`, and get it back, verified.

::

    <prefix>/<path>                       one object per file, with its sha256 as user metadata
    <prefix>/weighbridge.manifest.json    written last: what the artifact is made of; without it, it
        is not there
"""

import json
import logging
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core import s3
from weighbridge.core.artifact import Artifact, File, Format, digest_of
from weighbridge.core.errors import BadInput
from weighbridge.core.gather import check_disk
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.store import Store, sha256_of
from weighbridge.core.uploads import Upload, send_missing
from weighbridge.tasks.sources.base import Listing, gathering
from weighbridge.tasks.sources.s3 import S3Args

MANIFEST: Final = "weighbridge.manifest.json"

logger = logging.getLogger(__name__)


class Manifest(BaseModel):
    """What a pushed artifact is made of."""

    model_config = ConfigDict(frozen=True)

    digest: str = Field(description="As `weighbridge.core.artifact.digest_of` computes it.")
    format: Format
    origin: dict[str, str] = Field(default_factory=dict)
    files: list[File]


class Pushed(BaseModel):
    """What a push did."""

    model_config = ConfigDict(frozen=True)

    uri: str
    digest: str
    uploaded: list[str] = Field(description="Paths of the files that were sent.")
    present: list[str] = Field(
        description="Paths of those that were there already, by their sha256."
    )
    uploaded_bytes: int


def push(artifact: Artifact, to: S3Args, store: Store) -> Pushed:
    """Send an artifact's files that are not there yet, then its manifest.

    Raises:
        BadInput: the bucket does not exist, or the credentials are refused.
        Unavailable: the service does not answer.
    """
    manifest = Manifest(
        digest=artifact.digest,
        format=artifact.format,
        origin=artifact.origin,
        files=store.files(artifact.digest),
    )
    return _push(artifact.path, manifest, to)


def push_folder(folder: Path, format: Format, to: S3Args) -> Pushed:
    """Send a folder, such as an exported Bento, in the same way.

    Raises:
        BadInput: the folder is missing or empty; and as `push`.
        Unavailable: as `push`.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise BadInput(
            f"pushing {folder}", "there is no such folder, or it is empty", "check the path"
        )
    files = [
        File(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=sha256_of(path),
        )
        for path in paths
    ]
    return _push(folder, Manifest(digest=digest_of(files), format=format, files=files), to)


def pull(source: S3Args, store: Store) -> Artifact:
    """Bring a pushed artifact into the store: verified, whole or not at all, going on where it was
    killed.

    Raises:
        BadInput: no artifact was pushed there, or its files are not those of its manifest.
        Unavailable: the service does not answer, or the disk is too small.
    """
    manifest = _manifest(source)
    files = [RemoteFile(**file.model_dump()) for file in manifest.files]
    pulling = gathering(Listing(files=files, origin={"uri": source.uri}), source, store)
    check_disk([pulling], store)
    artifact = store.assemble(
        pulling.run(f"pulling {source.uri}"), manifest.format, manifest.origin
    )
    pulling.forget()
    return artifact


def _manifest(source: S3Args) -> Manifest:
    content = s3.get(source, source.folder + MANIFEST)
    if content is None:
        wrong = f"there is no {MANIFEST}: nothing was pushed there, or not to the end"
        raise BadInput(
            f"pulling {source.uri}", wrong, "push it (again), or check bucket and prefix"
        )
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as exc:
        raise BadInput(f"pulling {source.uri}", f"{MANIFEST} is damaged", "push it again") from exc
    if manifest.digest != digest_of(manifest.files):
        raise BadInput(
            f"pulling {source.uri}", f"{MANIFEST} does not fit its own digest", "push it again"
        )
    return manifest


def _push(folder: Path, manifest: Manifest, to: S3Args) -> Pushed:
    uploads = [Upload(file, folder / file.path, file.path) for file in manifest.files]
    sent = [upload.file for upload in send_missing(uploads, to, f"pushing to {to.uri}")]
    body = json.dumps(manifest.model_dump(mode="json"), indent=1).encode()
    # Last: whoever reads a manifest may rely on every file that it names.
    if s3.get(to, to.folder + MANIFEST) != body:
        s3.put(to, to.folder + MANIFEST, body)
    size, paths = sum(file.size for file in sent), [file.path for file in sent]
    present = [file.path for file in manifest.files if file not in sent]
    logger.info(
        "%s: %d files (%.1f MB) sent, %d were there", to.uri, len(sent), size / 1e6, len(present)
    )
    return Pushed(
        uri=to.uri,
        digest=manifest.digest,
        uploaded=paths,
        present=sorted(present),
        uploaded_bytes=size,
    )
