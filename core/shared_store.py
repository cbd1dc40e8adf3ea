"""The store that several homes share: artifacts and records of finished stages in a bucket.

::

    <prefix>/blobs/ab/<sha256>           one file each, with its sha256 as user metadata
    <prefix>/trees/<digest>.json         what an artifact is made of; written after its blobs
    <prefix>/stages/<stage>/<key>.json   the record of a stage; written after its artifacts

So whatever a name leads to is there, whole, even where a writer was killed between. Every object
is named by its content, or by what it was made of: two writers write the same.
"""

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from weighbridge.core import s3
from weighbridge.core.artifact import File, digest_of
from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.gather import Gathering, check_disk
from weighbridge.core.progress import Advance
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.store import Store, sha256_of
from weighbridge.core.uploads import Upload, send_missing

logger = logging.getLogger(__name__)


class SharedStore:
    """A prefix of a bucket. Safe for any number of writers."""

    def __init__(self, location: s3.S3Location) -> None:
        self.location = location

    @classmethod
    def at(cls, uri: str) -> "SharedStore":
        """Return the store at `s3://bucket/prefix`. Raises BadInput where it is no such address."""
        bucket, prefix = s3.split(uri)
        return cls(s3.S3Location(bucket=bucket, prefix=prefix))

    def check(self) -> None:
        """Check that the bucket can be written: before hours of work, not after them.

        Raises:
            BadInput: there is no such bucket, it may only be read, or the credentials are refused.
            Unavailable: the service does not answer.
        """
        key = self.location.folder + "weighbridge.store"
        try:
            s3.put(self.location, key, b"1\n")
        except BadInput as exc:
            if not self._can_be_read(key):
                raise
            remedy = "allow PutObject below the prefix, or unset WEIGHBRIDGE_STORE"
            raise BadInput(
                f"opening the shared store {self.location.uri}", "it is read-only", remedy
            ) from exc

    def _can_be_read(self, key: str) -> bool:
        try:
            s3.get(self.location, key)
        except WeighbridgeError:
            return False
        return True

    def has(self, digest: str) -> bool:
        """Whether the artifact is there, with all its files."""
        return s3.head(self.location, self._tree(digest)) is not None

    def push(self, digest: str, store: Store) -> None:
        """Share an artifact: the files that are not there yet, then its list.

        Raises:
            BadInput: the bucket does not exist, or the credentials are refused.
            Unavailable: the service does not answer, or the artifact is damaged here.
        """
        if self.has(digest):
            return
        files = store.files(digest)
        contents = {file.sha256: file for file in files}
        uploads = [_verified(file, store.locate(digest)) for file in contents.values()]
        sent = send_missing(uploads, self.location, f"sharing artifact {digest[7:19]}")
        body = json.dumps({"files": [file.model_dump() for file in files]}, indent=1)
        # Last: whoever reads a list may rely on every file that it names.
        s3.put(self.location, self._tree(digest), body.encode())
        size = sum(upload.file.size for upload in sent)
        logger.info("%s is shared: %.1f MB sent to %s", digest[7:19], size / 1e6, self.location.uri)

    def pull(self, digest: str, store: Store) -> None:
        """Bring an artifact into a store, verified, going on where it was killed.

        Raises:
            BadInput: its files are not those of its digest.
            Unavailable: it is not there, the service does not answer, or the disk is too small.
        """
        files = self._files(digest)
        remote = [RemoteFile(path=f.path, size=f.size, sha256=f.sha256) for f in files]

        def fetch(file: RemoteFile, to: Path, advance: Advance) -> None:
            blob = file.model_copy(update={"path": blob_path(file.sha256)})
            s3.download(self.location, blob, to, advance)

        pulling = Gathering(remote, self.location.uri, fetch, store)
        check_disk([pulling], store)
        store.publish(pulling.run(f"fetching artifact {digest[7:19]}"))
        pulling.forget()

    def record(self, stage: str, key: str) -> str | None:
        """Return the record of a finished stage; None where nobody has finished it."""
        content = s3.get(self.location, self._record(stage, key))
        return None if content is None else content.decode("utf-8", "replace")

    def share_record(self, stage: str, key: str, text: str) -> None:
        """Let others find the record of a stage, whose artifacts were shared before."""
        s3.put(self.location, self._record(stage, key), text.encode())

    def has_record(self, stage: str, key: str) -> bool:
        return s3.head(self.location, self._record(stage, key)) is not None

    def _files(self, digest: str) -> list[File]:
        doing = f"fetching artifact {digest[:19]} from {self.location.uri}"
        content = s3.get(self.location, self._tree(digest))
        if content is None:
            raise Unavailable(doing, "it is neither in this home's store nor there")
        try:
            files = [File.model_validate(entry) for entry in json.loads(content)["files"]]
        except (ValueError, KeyError, TypeError, ValidationError) as exc:
            raise BadInput(doing, "its list of files is damaged", "remove that object") from exc
        if digest_of(files) != digest:
            raise BadInput(doing, "its list of files is another one's", "remove that object")
        return files

    def _tree(self, digest: str) -> str:
        return f"{self.location.folder}trees/{digest.removeprefix('sha256:')}.json"

    def _record(self, stage: str, key: str) -> str:
        return f"{self.location.folder}stages/{stage}/{key}.json"


def blob_path(sha256: str) -> str:
    """Return where the file with this content lies below the prefix."""
    return f"blobs/{sha256[:2]}/{sha256}"


def _verified(file: File, folder: Path) -> Upload:
    """Return the upload of a stored file, hashed again: what is damaged here stays here."""
    path = folder / file.path
    if not path.exists() or sha256_of(path) != file.sha256:
        remedy = "remove it from the store, and run again: it is made or fetched anew"
        raise Unavailable(f"sharing {file.path}", "it is damaged or gone in the store", remedy)
    return Upload(file, path, blob_path(file.sha256))
