"""Bytes from anywhere into the store: verified, several files at once, going on where a killed
run stopped.

::

    store/partial/<key>/bytes    the beginning of a file (and what its source notes beside it)
    store/partial/<key>/sha256   the file is whole and in the store under this digest

The key names the content: bytes of two revisions never meet in one file.
"""

import hashlib
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from weighbridge.core.artifact import File
from weighbridge.core.disk import require_room
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.formatting import human_size, quoted
from weighbridge.core.progress import Advance, meter
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.store import Store, sha256_of

# With four ranges each; s3.CONNECTIONS is the product.
FILES_AT_ONCE = 8
SPARE = 64 << 20
"""Bytes of disk that must stay free."""
CHUNK = 1 << 20
UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Characters that no name of a file of ours holds."""

logger = logging.getLogger(__name__)


Fetch = Callable[[RemoteFile, Path, Advance], None]
"""Writes a file's bytes to a path, as `Source.fetch` does; the last argument is told how many."""

Inspect = Callable[[RemoteFile, Path], None]


class _Stopped(Exception):
    """Another file has failed."""


@dataclass(frozen=True)
class Gathering:
    """Files of one place on their way into the store."""

    files: list[RemoteFile]
    uri: str
    """Where they come from: names the place in errors, and what has no digest of its own."""
    fetch: Fetch
    store: Store
    inspect: Inspect = lambda file, path: None
    """Refuses a file, by BadInput, whose bytes came over well but cannot be right."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for file in self.files:
            if not _stays_below(file.path):
                raise BadInput(
                    f"reading the listing of {self.uri}",
                    f"{quoted(file.path[:200])} is no path below the folder",
                    "give a source whose files lie where they say",
                )

    def missing_bytes(self) -> int:
        """Return what is still to be moved, and so how much disk it takes."""
        return sum(file.size - self._there(file) for file in self.files if self.known(file) is None)

    def known(self, file: RemoteFile) -> File | None:
        """Return the file, if an earlier run has brought it into the store."""
        sha256 = file.sha256
        note = self._folder(file) / "sha256"
        if not sha256 and _content_name(file) and note.exists():
            sha256 = note.read_text()
        if sha256 and self.store.blob(sha256):
            return File(path=file.path, size=file.size, sha256=sha256)
        return None

    def run(self, doing: str) -> list[File]:
        """Bring every file into the store; return them as blobs, in the listing's order.

        Raises:
            BadInput: a file's bytes are not those that were published.
            Unavailable: the source does not answer, or the disk is full.
        """
        total = sum(file.size for file in self.files)
        with meter(doing, total) as advance, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            futures = [pool.submit(self._bring, file, advance) for file in self.files]
            try:
                # As they complete, not in their order: the first failure stops the others at once.
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def forget(self) -> None:
        """Drop what was kept for resuming: the artifact is whole."""
        for file in self.files:
            shutil.rmtree(self._folder(file), ignore_errors=True)
            self._lock(file).unlink(missing_ok=True)

    def _bring(self, file: RemoteFile, advance: Advance) -> File:
        folder = self._folder(file)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock(file)):
            if existing := self.known(file):
                advance(file.size)
                return existing
            folder.mkdir(exist_ok=True)
            try:
                sha256 = self._fetch_verified(file, folder / "bytes", advance)
                stored = self.store.put_blob(folder / "bytes", adopt=True, sha256=sha256)
            except OSError as exc:
                remedy = "make room and run again; what has arrived is kept"
                raise Unavailable(f"storing {file.path}", exc.strerror or str(exc), remedy) from exc
            # After the blob is in the store: the note says that it is there.
            replace_text(folder / "sha256", sha256)
        return stored.model_copy(update={"path": file.path})

    def _fetch_verified(self, file: RemoteFile, to: Path, advance: Advance) -> str:
        """Fetch a file and return its sha256.

        Bytes kept from an earlier run may be bad: then it starts anew, once.
        """
        # Bytes from before may be of other content: nothing would tell.
        if not _content_name(file):
            _clear(to)
        resumed = to.exists()
        sha256, wrong = self._fetch_once(file, to, advance)
        if wrong and resumed:
            logger.warning("%s: what was kept of it is damaged; fetching it anew", file.path)
            _clear(to)
            sha256, wrong = self._fetch_once(file, to, advance)
        try:
            if wrong:
                remedy = (
                    "the file is corrupted where it comes from, or on its way; try again, or "
                    "another source"
                )
                raise BadInput(f"verifying {file.path} of {self.uri}", wrong, remedy)
            self.inspect(file, to)
        except BadInput:
            _clear(to)
            raise
        return sha256

    def _fetch_once(self, file: RemoteFile, to: Path, advance: Advance) -> tuple[str, str | None]:
        """Fetch once; return the sha256 of what came, and what is wrong with it."""
        moved = _Moved(advance, self._stop)
        self.fetch(file, to, moved)
        moved.settle(file.size)
        sha256 = sha256_of(to)
        wrong = _mismatch(file, to, sha256)
        if wrong:
            moved.settle(0)
        return sha256, wrong

    def _folder(self, file: RemoteFile) -> Path:
        name = _content_name(file) or ""
        # A sha256 names the content anywhere; an ETag or a time only within its source.
        if not file.sha256:
            name = json.dumps([self.uri, file.path, file.size, name])
        return self.store.root / "partial" / hashlib.sha256(name.encode()).hexdigest()[:32]

    def _lock(self, file: RemoteFile) -> Path:
        return self._folder(file).with_suffix(".lock")

    def _there(self, file: RemoteFile) -> int:
        """Return the bytes on disk from an earlier run.

        A file that was filled in parts has holes.
        """
        path = self._folder(file) / "bytes"
        # st_blocks counts units of 512 bytes, whatever the file system's own blocks are.
        return min(path.stat().st_blocks * 512, file.size) if path.exists() else 0


class _Moved:
    """Reports bytes of one file as progress; ends the transfer when another file has failed."""

    def __init__(self, advance: Advance, stop: threading.Event) -> None:
        self._advance = advance
        self._stop = stop
        self._told = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._told += count
        self._advance(count)

    def settle(self, size: int) -> None:
        """Correct what was reported to `size`."""
        self(size - self._told)


def check_disk(gatherings: Iterable[Gathering], store: Store) -> None:
    """Refuse work that cannot be finished.

    Raises:
        Unavailable: what is missing does not fit on the store's disk.
    """
    needed = sum(gathering.missing_bytes() for gathering in gatherings)
    if needed:
        purpose = f"what is to be fetched, with {human_size(SPARE)} to spare,"
        require_room(needed + SPARE, purpose, store.root, "checking the disk before downloading")


def _stays_below(path: str) -> bool:
    parts = path.split("/")
    return (
        not path.startswith("/")
        and all(part not in ("", ".", "..") and len(part) < 256 for part in parts)
        # A line break would make two lines of one in the list that a digest is taken of.
        and not UNWRITABLE.search(path)
    )


def _content_name(file: RemoteFile) -> str | None:
    """Return what tells this content from any other; None where nothing does."""
    return file.sha256 or file.git_sha1 or file.version or None


def _clear(to: Path) -> None:
    for path in to.parent.glob(f"{to.name}*"):
        path.unlink()


def _mismatch(file: RemoteFile, path: Path, sha256: str) -> str | None:
    """Return what is wrong with the bytes; None if they are those that were published."""
    size = path.stat().st_size
    if size != file.size:
        return f"expected {file.size} bytes, got {size}"
    if file.sha256 and sha256 != file.sha256:
        return f"expected sha256 {file.sha256}, got {sha256}"
    if file.git_sha1 and not file.sha256 and (actual := git_sha1_of(path)) != file.git_sha1:
        return f"expected git blob {file.git_sha1}, got {actual}"
    return None


def git_sha1_of(path: Path) -> str:
    """Return the id under which git knows a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
