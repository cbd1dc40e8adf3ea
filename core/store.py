"""The artifact store: folders named by their digest, whole or not there at all.

::

    blobs/ab/<sha256>              one file each, read-only; what resuming a download finds again
    trees/<digest>/files/…         an artifact's folder, hard links to its blobs
    trees/<digest>/manifest.json   its file list
    tmp/                           scratch on the same file system, so that publishing is a rename

An artifact that is not here is fetched from the shared store, where there is one.
Every stored file is dated to the same second; one that bears another date was touched, and is
hashed again before it is believed. Damage that leaves size and date as they were is seen only by
reading: `damaged` does, and dates what it finds, so that nobody believes it any more.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from weighbridge.core.artifact import Artifact, File, Format, artifacts_in, digest_of
from weighbridge.core.errors import Unavailable

T = TypeVar("T")


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where their file systems differ, whole or
    not at all.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".placing-") as scratch:
        fresh = Path(scratch) / "file"
        try:
            os.link(source, fresh)
        # Another file system, or one without links, or a file with as many as it may have.
        except OSError:
            shutil.copyfile(source, fresh)
        fresh.replace(target)


UNTOUCHED = 1_000_000_000 * 10**9
"""Modification time of stored files, in nanoseconds: Nix dates its store alike, for the same
reason.
"""


def _is_whole(path: Path, file: File) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if status.st_size != file.size:
        return False
    return status.st_mtime_ns == UNTOUCHED or sha256_of(path) == file.sha256


def _is_damaged(path: Path, sha256: str) -> bool:
    """Whether a file has other content; one that has is dated, so that it is not believed again."""
    try:
        if sha256_of(path) == sha256:
            return False
        os.utime(path)
    # Gone, unreadable where its disk is broken, or another's file that bears the date it has.
    except OSError:
        pass
    return True


def _publish(scratch: Path, final: Path) -> None:
    """Rename into place, unless somebody has published the same content meanwhile."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.rename(final)
    # A folder with something in it cannot be renamed over.
    except OSError:
        if not final.exists():
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Shared(Protocol):
    """What the stores of several homes have in common."""

    def has(self, digest: str) -> bool:
        """Whether the artifact is there, whole. Raises Unavailable where nothing answers."""

    def pull(self, digest: str, store: "Store") -> None:
        """Bring the artifact into a store, verified. Raises Unavailable."""


class Store:
    """Content-addressed folders under one root. Safe for several processes at once."""

    def __init__(self, root: Path, shared: Shared | None = None) -> None:
        self.root = root
        self.shared = shared

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a temporary folder on the store's file system, removed afterwards."""
        parent = self.root / "tmp"
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def blob(self, sha256: str) -> Path | None:
        """Return the stored file with this content, None if there is none."""
        path = self.blob_path(sha256)
        whole = path.exists() and (
            path.stat().st_mtime_ns == UNTOUCHED or sha256_of(path) == sha256
        )
        return path if whole else None

    def put_blob(self, path: Path, *, adopt: bool, sha256: str = "") -> File:
        """Store one file by its content; `adopt` moves it (our own scratch), else it is copied.

        `sha256` is its digest where the caller has just computed it. The returned `File` has the
        base name as its path.
        """
        size, sha256 = path.stat().st_size, sha256 or sha256_of(path)
        file = File(path=path.name, size=size, sha256=sha256)
        final = self.blob_path(sha256)
        if not _is_whole(final, file):
            self._store_blob(path, final, adopt=adopt)
        return file

    def add(
        self,
        folder: Path,
        format: Format,
        origin: Mapping[str, str] | None = None,
        *,
        adopt: bool = True,
    ) -> Artifact:
        """Store every file below `folder` as one artifact.

        With `adopt` the files are moved out of `folder`, which must be scratch of ours; else
        copied.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = [
            self.put_blob(path, adopt=adopt).model_copy(
                update={"path": path.relative_to(folder).as_posix()}
            )
            for path in paths
        ]
        return self.assemble(files, format, origin)

    def assemble(
        self, files: list[File], format: Format, origin: Mapping[str, str] | None = None
    ) -> Artifact:
        """Make an artifact out of blobs that are already stored.

        Raises:
            Unavailable: one of them is damaged or gone; what is put into the store again is whole.
        """
        digest = self.publish(files)
        size = sum(file.size for file in files)
        return self.bind(
            Artifact(digest=digest, format=format, size=size, origin=dict(origin or {}))
        )

    def publish(self, files: list[File]) -> str:
        """Give blobs that are stored a folder, with their list; return its digest.

        Raises:
            Unavailable: as `assemble`.
        """
        digest = digest_of(files)
        if not self._tree_is_whole(digest):
            self._build_tree(digest, files)
        return digest

    def bind(self, value: T) -> T:
        """Let this store say where every artifact inside a value is; return the value."""
        for artifact in artifacts_in(value):
            artifact.located_by(self.locate)
        return value

    def locate(self, digest: str) -> Path:
        """Return the folder of an artifact's files, fetched first where it is not here.

        Raises:
            Unavailable: it is neither here nor in the shared store.
        """
        if not self._manifest(digest).exists():
            if self.shared is None:
                raise Unavailable(f"opening artifact {digest[:19]}", "it is not in the store")
            self.shared.pull(digest, self)
        return self.folder(digest)

    def files(self, digest: str) -> list[File]:
        """Return the file list of an artifact, fetched first where it is not here.

        Raises:
            Unavailable: it is neither here nor in the shared store.
        """
        self.locate(digest)
        return self._files_here(digest)

    def is_whole(self, artifact: Artifact) -> bool:
        """Whether every byte is still there: files untouched since they were verified, or hashed
        again.
        """
        return self._tree_is_whole(artifact.digest)

    def is_in_reach(self, artifact: Artifact) -> bool:
        """Whether it is whole here, or can be fetched; what is damaged here is fetched at once."""
        if self.is_whole(artifact):
            return True
        if self.shared is None or not self.shared.has(artifact.digest):
            return False
        if self._manifest(artifact.digest).exists():
            self.shared.pull(artifact.digest, self)
        return True

    def damaged(self, digest: str) -> list[str]:
        """Read every byte of an artifact, whatever its files' dates say: about a second per GB.

        Returns:
            The paths of those of its files that are damaged or gone.

        Raises:
            Unavailable: it is not in this store.
        """
        folder = self.folder(digest)
        return [
            file.path for file in self.files(digest) if _is_damaged(folder / file.path, file.sha256)
        ]

    def blobs(self) -> list[Path]:
        """Return every stored file, each named by its content."""
        return sorted((self.root / "blobs").glob("*/*"))

    def is_damaged(self, blob: Path) -> bool:
        """Read a stored file, whatever its date says; return whether its content is another."""
        return _is_damaged(blob, blob.name)

    def digests(self) -> list[str]:
        """Return the digest of every artifact that is stored."""
        return [f"sha256:{path.name}" for path in sorted((self.root / "trees").glob("*"))]

    def folder(self, digest: str) -> Path:
        """Return the folder in which an artifact's files are, if it is stored."""
        return self._tree_path(digest) / "files"

    def blob_path(self, sha256: str) -> Path:
        """Return where the file with this content is, if it is stored."""
        return self.root / "blobs" / sha256[:2] / sha256

    def leftovers(self, older_than: float) -> list[Path]:
        """Return what broken-off downloads and killed processes left: files that belong to no
        artifact, and scratch.

        Args:
            older_than: Unix time; what was changed after it may be in use.
        """
        blobs = (self.root / "blobs").glob("*/*")
        scratch = (self.root / "tmp").glob("*")
        return [
            path
            for path in sorted([*blobs, *scratch])
            # The time of the last change of any kind: stored files all bear one date.
            if path.lstat().st_ctime < older_than and (path.is_dir() or path.stat().st_nlink == 1)
        ]

    def remove(self, digest: str) -> None:
        """Drop an artifact and those of its blobs that nothing else links to."""
        tree = self._tree_path(digest)
        files = self._files_here(digest)
        shutil.rmtree(tree)
        for file in files:
            blob = self.blob_path(file.sha256)
            # Every artifact that holds the file is one more link to it.
            if blob.exists() and blob.stat().st_nlink == 1:
                blob.unlink()

    def _manifest(self, digest: str) -> Path:
        return self._tree_path(digest) / "manifest.json"

    def _files_here(self, digest: str) -> list[File]:
        manifest = json.loads(self._manifest(digest).read_text())
        return [File.model_validate(entry) for entry in manifest["files"]]

    def _tree_path(self, digest: str) -> Path:
        return self.root / "trees" / digest.removeprefix("sha256:")

    def _store_blob(self, path: Path, final: Path, *, adopt: bool) -> None:
        with self.scratch() as scratch:
            blob = scratch / "blob"
            if adopt:
                shutil.move(path, blob)
            else:
                shutil.copy(path, blob)
            # Read-only, dated and on the disk before it gets its name: others take what has one as
            # it is.
            blob.chmod(0o555 if os.access(blob, os.X_OK) else 0o444)
            os.utime(blob, ns=(UNTOUCHED, UNTOUCHED))
            _sync(blob)
            final.parent.mkdir(parents=True, exist_ok=True)
            blob.replace(final)

    def _build_tree(self, digest: str, files: list[File]) -> None:
        final = self._tree_path(digest)
        with self.scratch() as scratch:
            tree = scratch / "tree"
            for file in files:
                # The damaged file of a damaged tree is its blob as well: both are one.
                if not _is_whole(self.blob_path(file.sha256), file):
                    raise Unavailable(
                        f"putting artifact {digest[:19]} together",
                        f"{file.path} is damaged or gone in the store",
                        "make or fetch it again",
                    )
                link = tree / "files" / file.path
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob_path(file.sha256), link)
            tree.mkdir(exist_ok=True)
            manifest = tree / "manifest.json"
            manifest.write_text(
                json.dumps({"files": [file.model_dump() for file in files]}, indent=1)
            )
            _sync(manifest)
            self._discard_damaged(final)
            _publish(tree, final)

    def _discard_damaged(self, tree: Path) -> None:
        if tree.exists():
            with self.scratch() as scratch:
                # Renamed, not deleted file by file: nobody may find half of it under its name.
                tree.rename(scratch / "damaged")

    def _tree_is_whole(self, digest: str) -> bool:
        try:
            files = self._files_here(digest)
        except (OSError, ValueError, KeyError):
            return False
        return all(_is_whole(self._tree_path(digest) / "files" / file.path, file) for file in files)
