"""Where bytes come from: what a `source` plugin offers."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.gather import Gathering, Inspect
from weighbridge.core.plugins import load
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.store import Store


class SourceArgs(BaseModel):
    """Base of every source's arguments; `kind` names the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str


class Listing(BaseModel):
    """What a source holds at one moment, pinned."""

    files: list[RemoteFile]
    origin: dict[str, str] = Field(description="`uri` with the revision pinned, `revision`, …")
    immutable: bool = Field(
        False, description="The arguments alone already name this content: keep it."
    )


class Source(Protocol):
    """A place that models and data come from."""

    Args: ClassVar[type[SourceArgs]]

    def parse(self, uri: str) -> SourceArgs:
        """Return the arguments that `<kind>://…` stands for. Raises BadInput if it is malformed."""

    def list_files(self, args: Any) -> Listing:
        """Return every file, with the revision resolved to what cannot move any more.

        Raises:
            BadInput: the repository, bucket, folder or revision does not exist.
            Unavailable: the service does not answer.
        """

    def fetch(
        self,
        args: Any,
        listing: Listing,
        file: RemoteFile,
        to: Path,
        advance: Callable[[int], None],
    ) -> None:
        """Write one file's bytes to `to`; `advance` takes the bytes written since the last call.

        `to` may hold the beginning of this very file from an interrupted run: go on from there if
        you can. Notes about what is there may be kept in files beside it, named `<to's
        name>.<anything>`. Called from several threads at once. The caller checks size and digests.
        """


# Asked for by isinstance: a plugin that leaves this part out is a whole source.
@runtime_checkable
class Digesting(Protocol):
    """What a source may offer besides: digests that its listing is too quick to hold."""

    def digest(self, args: Any, file: RemoteFile) -> RemoteFile:
        """Return the file with its sha256, where one can be had without moving the bytes."""


@runtime_checkable
class OnThisMachine(Protocol):
    """What a source may offer besides: files that can be read where they are."""

    def local_path(self, args: Any, file: RemoteFile) -> Path:
        """Return where the file lies."""


@cache
def load_source(kind: str) -> Source:
    """Return the source plugin of this name.

    Raises:
        BadInput: There is none.
    """
    source: Source = load("source", kind)()
    return source


def gathering(
    listing: Listing, args: SourceArgs, store: Store, inspect: Inspect = lambda file, path: None
) -> Gathering:
    """Return the files of a pinned listing, ready to be brought into the store."""
    fetch = partial(load_source(args.kind).fetch, args, listing)
    uri = listing.origin.get("uri", args.kind)
    return Gathering(listing.files, uri, fetch, store, inspect)
