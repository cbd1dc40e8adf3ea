"""Source `file`: a folder, or one file, on this machine."""

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from weighbridge.core.errors import BadInput
from weighbridge.core.field_types import PathText, absolute
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.store import sha256_of
from weighbridge.tasks.sources.base import Listing, SourceArgs

CHUNK = 4 << 20


class FileArgs(SourceArgs):
    """A folder or file on this machine."""

    kind: Literal["file"] = "file"
    path: PathText = Field(
        min_length=1,
        description="Folder or file; `~` is the home folder; relative to where you are.",
    )

    @field_validator("path")
    @classmethod
    def _spells_out_whose_home(cls, path: str) -> str:
        """Return `~` spelt out: stages of the recipe may run elsewhere, where nobody has the name,
        or another home.
        """
        return str(absolute(path)) if path.startswith("~") else path

    def absolute(self) -> Path:
        return absolute(self.path)


class FileSource:
    """Copies, never links: what lies outside the store may change at any time."""

    Args: ClassVar[type[SourceArgs]] = FileArgs

    def parse(self, uri: str) -> FileArgs:
        path = uri.removeprefix("file://")
        if not path:
            raise BadInput(
                f"reading '{uri}'", "no path is named", "write file:///folder, or a path alone"
            )
        return FileArgs(path=path)

    def list_files(self, args: FileArgs) -> Listing:
        path = args.absolute()
        try:
            files = list(_below(path)) if path.is_dir() else [_alone(path)]
        except OSError as exc:
            remedy = (
                "check the path" if isinstance(exc, FileNotFoundError) else "check who may read it"
            )
            raise BadInput(
                f"looking into {exc.filename or path}", (exc.strerror or "failed").lower(), remedy
            ) from exc
        return Listing(files=files, origin={"uri": f"file://{path}"})

    def digest(self, args: FileArgs, file: RemoteFile) -> RemoteFile:
        """Return the file named by its content, so that the same bytes made again count as the
        same.
        """
        path = self.local_path(args, file)
        try:
            return file.model_copy(
                update={"sha256": _sha256(path, _version(path.stat()), file.size)}
            )
        except OSError as exc:
            raise _unreadable(path, exc) from exc

    def fetch(
        self,
        args: FileArgs,
        listing: Listing,
        file: RemoteFile,
        to: Path,
        advance: Callable[[int], None],
    ) -> None:
        path = self.local_path(args, file)
        try:
            with path.open("rb") as source, to.open("ab") as target:
                # The source may have become shorter since an earlier run began to copy it.
                source.seek(min(target.tell(), path.stat().st_size))
                advance(source.tell())
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    advance(len(chunk))
        except OSError as exc:
            raise _unreadable(path, exc) from exc

    def local_path(self, args: FileArgs, file: RemoteFile) -> Path:
        root = args.absolute()
        if not root.is_dir():
            return root
        # Again, when it is read: what was a file when it was listed may be a link by now.
        _require_within(root / file.path, root)
        return root / file.path


def _unreadable(path: Path, exc: OSError) -> BadInput:
    return BadInput(
        f"reading {path}",
        (exc.strerror or str(exc)).lower(),
        "check that it is there and may be read",
    )


def _below(folder: Path) -> Iterator[RemoteFile]:
    """Yield every file below a folder, but in hidden ones, which hold caches and repositories."""
    # Without onerror, os.walk passes over a folder that it may not read.
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            _remote(Path(parent) / name, folder)
            for name in sorted(names)
            # A link may lead nowhere; whoever reads from a pipe waits for ever.
            if (Path(parent) / name).is_file()
        )


def _alone(path: Path) -> RemoteFile:
    """Return the file that a location is itself.

    Raises:
        BadInput: it is a pipe or a device, which whoever reads it may wait for without end.
    """
    file = _remote(path, path.parent)
    if not path.is_file():
        raise BadInput(f"looking into {path}", "it is neither a folder nor a file", "name one")
    return file


def _require_within(path: Path, folder: Path) -> None:
    """Refuse a link that leads out of the folder: to a key of this machine's user, perhaps.

    Raises:
        BadInput: it does.
    """
    target, root = path.resolve(), folder.resolve()
    # In the hub's own cache the folder of a revision holds links to the blobs of its repository.
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    if not any(target.is_relative_to(place) for place in (root, *blobs)):
        raise BadInput(
            f"looking into {folder}",
            f"{path.relative_to(folder)} is a link that leads out of it, to {target}",
            "put the file itself there, or remove the link",
        )


def _raise(exc: OSError) -> None:
    raise exc


def _remote(path: Path, root: Path) -> RemoteFile:
    status = path.stat()
    return RemoteFile(
        path=path.relative_to(root).as_posix(), size=status.st_size, version=_version(status)
    )


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}"


@lru_cache(maxsize=4096)
def _sha256(path: Path, version: str, size: int) -> str:
    """Return a file's digest, computed once per process.

    Planning, listing and running all ask for it.
    """
    # `version` and `size` are part of the cache's key: a file that has changed is read again.
    return sha256_of(path)
