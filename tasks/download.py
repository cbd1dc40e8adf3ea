"""Stage download: URIs of a model and of data -> two artifacts in the store.

In three steps, because a branch or a folder can move between two runs::

    pinned = pin(args, workspace)                        # asks the sources; cheap, no bytes move
    inputs = identity(pinned, args)                      # what the stage's result depends on
    download(pinned, args, workspace)                    # the stage itself, cached under `inputs`
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weighbridge.core.artifact import Artifact, File
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.gather import Gathering, check_disk
from weighbridge.core.progress import track
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.stage_cache import canonical
from weighbridge.core.store import Store
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import model_files
from weighbridge.tasks.data import FORMATS, SPLITS, DataArgs, Split
from weighbridge.tasks.preparation import check_first_rows, prepare
from weighbridge.tasks.sources.base import (
    Digesting,
    Listing,
    OnThisMachine,
    Source,
    SourceArgs,
    gathering,
    load_source,
)
from weighbridge.tasks.sources.uri import Location

# 3: test shares no row with train or validation.
# 4: numbers that lose digits and other formats' names of roles are refused.
VERSION: Final = 4
DIGESTS_AT_ONCE: Final = 8

logger = logging.getLogger(__name__)


class DownloadArgs(BaseModel):
    """Where the base model and the data come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Location = Field(
        description="A URI (hf://org/name@revision, s3://…, file://…) or a source's arguments."
    )
    data: DataArgs


class Downloaded(BaseModel):
    """The base model and the canonical data, in the store."""

    model_config = ConfigDict(frozen=True)

    model: Artifact = Field(description="Format safetensors: configuration, tokenizer, weights.")
    data: Artifact = Field(
        description="Format jsonl: train.jsonl, validation.jsonl, test.jsonl; see "
        "weighbridge.tasks.data."
    )


class Pinned(BaseModel):
    """What would be downloaded: the chosen files alone, by content that cannot move any more."""

    model_config = ConfigDict(frozen=True)

    model: Listing
    data: Listing


def pin(args: DownloadArgs, workspace: Workspace) -> Pinned:
    """Ask the sources what the arguments stand for right now.

    What is named by its commit is asked for once and then kept, so that it works with the source
    away.

    Raises:
        BadInput: something does not exist, or is no model or no data that we take. Of data on this
            machine the first rows are looked at, before a model is fetched for them.
        Unavailable: a source does not answer.
    """
    model = _pin(
        args.model, workspace, lambda listing: model_files.choose(listing.files, _uri(listing))
    )
    data = _pin(
        args.data.source, workspace, lambda listing: _unique(_choose_data(listing, args.data))
    )
    _check_local_data(data, args.data)
    return Pinned(model=model, data=data)


def _check_local_data(listing: Listing, args: DataArgs) -> None:
    if paths := paths_here(listing, args):
        check_first_rows(by_split(listing, args, paths), args)


def paths_here(listing: Listing, args: DataArgs) -> dict[str, Path]:
    """Return where each file of the data lies on this machine; none where they lie elsewhere."""
    source = load_source(args.source.kind)
    if not isinstance(source, OnThisMachine):
        return {}
    return {file.path: source.local_path(args.source, file) for file in listing.files}


def identity(pinned: Pinned, args: DownloadArgs) -> dict[str, Any]:
    """Return the stage's inputs, for the stage cache.

    They are the contents, where they come from, and how rows are made of them.
    """
    # The listing stands for the source: its origin names the commit, where the arguments may name a
    # branch that moves.
    rows = args.data.model_dump(exclude={"source"})
    return {"model": _identity(pinned.model), "data": _identity(pinned.data), "rows": rows}


def download(pinned: Pinned, args: DownloadArgs, workspace: Workspace) -> Downloaded:
    """Fetch what was pinned, verified, whole or not at all.

    Raises:
        BadInput: a file is corrupted, or a row is not what `args.data` says.
        Unavailable: a source does not answer, or the disk is too small.
    """
    store = workspace.store
    model = gathering(pinned.model, args.model, store, model_files.inspect)
    data = gathering(pinned.data, args.data.source, store)
    # Both together: each may fit where the two do not.
    check_disk([model, data], store)
    return Downloaded(
        model=_bring_model(model, pinned.model), data=_bring_data(data, pinned.data, args.data)
    )


def missing_bytes(pinned: Pinned, args: DownloadArgs, store: Store) -> int:
    """Return how many bytes `download` would still have to move, and the disk space it takes."""
    listings = ((pinned.model, args.model), (pinned.data, args.data.source))
    return sum(
        gathering(listing, location, store).missing_bytes() for listing, location in listings
    )


def _bring_model(model: Gathering, listing: Listing) -> Artifact:
    files = model.run("downloading the model")
    # Only when all have come: the index and the shards are checked against each other.
    paths = stored_paths(files, model.store)
    if model_files.INDEX in paths:
        shards = {path: blob for path, blob in paths.items() if path.endswith(".safetensors")}
        model_files.check_shards(paths[model_files.INDEX], shards)
    return _finish(model, model.store.assemble(files, "safetensors", listing.origin))


def _bring_data(data: Gathering, listing: Listing, args: DataArgs) -> Artifact:
    """Fetch the data and make the canonical rows.

    The files as they came stay in the store as blobs: another mapping of columns needs no second
    download.
    """
    paths = stored_paths(data.run("downloading the data"), data.store)
    with data.store.scratch() as out:
        counts = prepare(by_split(listing, args, paths), args, out)
        logger.info("data: %s", ", ".join(f"{count} {split}" for split, count in counts.items()))
        return _finish(data, data.store.add(out, "jsonl", listing.origin))


def by_split(
    listing: Listing, args: DataArgs, paths: Mapping[str, Path]
) -> dict[Split, list[tuple[str, Path]]]:
    """Return the name and the local copy of each file, per split that the source has."""
    return {
        split: [(file.path, paths[file.path]) for file in matching(listing, args, split)]
        for split in SPLITS
        if args.pattern(split)
    }


def _finish(files: Gathering, artifact: Artifact) -> Artifact:
    files.forget()
    logger.info("%s is %s, %.1f MB", files.uri, artifact.short, artifact.size / 1e6)
    return artifact


def stored_paths(files: Iterable[File], store: Store) -> dict[str, Path]:
    """Return where the store keeps each of the files that it has."""
    blobs = {file.path: store.blob(file.sha256) for file in files}
    return {path: blob for path, blob in blobs.items() if blob is not None}


def _uri(listing: Listing) -> str:
    return listing.origin.get("uri", "the source")


def _identity(listing: Listing) -> dict[str, Any]:
    return {
        "origin": listing.origin,
        "files": {file.path: _content(file) for file in listing.files},
    }


def _content(file: RemoteFile) -> str:
    identifiers = {
        "sha256": file.sha256,
        "git": file.git_sha1,
        "version": file.version and f"{file.version} {file.size}",
    }
    names = (f"{kind}:{name}" for kind, name in identifiers.items() if name)
    return next(
        names, "unnamed:" + uuid.uuid4().hex
    )  # never equal: nothing says that the content is the same


def _choose_data(listing: Listing, args: DataArgs) -> list[RemoteFile]:
    return [
        file for split in SPLITS if args.pattern(split) for file in matching(listing, args, split)
    ]


def _unique(files: list[RemoteFile]) -> list[RemoteFile]:
    return list({file.path: file for file in files}.values())


def matching(listing: Listing, args: DataArgs, split: Split) -> list[RemoteFile]:
    """Return the files of one split, in the order of their names.

    A location that is one file is its own train split.
    """
    pattern = args.pattern(split)
    matching = [
        # The name itself first: one with brackets in it does not match itself as a pattern.
        file
        for file in listing.files
        if file.path == pattern or fnmatchcase(file.path, pattern)
    ]
    if matching:
        return sorted(matching, key=lambda file: file.path)
    single = listing.files if len(listing.files) == 1 and _is_data(listing.files[0]) else []
    if split == "train" and single and pattern == DataArgs.model_fields["train"].default:
        return single
    available = sorted(file.path for file in listing.files if _is_data(file))
    shown = ", ".join(available[:6]) + (
        f" and {len(available) - 6} more" if len(available) > 6 else ""
    )
    remedy = (
        f"its data files are: {shown}"
        if available
        else f"it has no data file ({', '.join(FORMATS)})"
    )
    raise BadInput(
        f"looking for the {split} data in {_uri(listing)}", f"there is no {pattern}", remedy
    )


def _is_data(file: RemoteFile) -> bool:
    return file.path.rpartition(".")[2] in FORMATS


def _pin(
    location: SourceArgs, workspace: Workspace, choose: Callable[[Listing], list[RemoteFile]]
) -> Listing:
    source = load_source(location.kind)
    listing = _listing(source, location, workspace.settings.home / "listings")
    chosen = choose(listing)
    if isinstance(source, Digesting):
        # Of the chosen files alone: a digest costs a request or the reading of a file.
        chosen = _digested(source, location, chosen)
    return listing.model_copy(update={"files": chosen})


def _digested(source: Digesting, location: SourceArgs, files: list[RemoteFile]) -> list[RemoteFile]:
    def digest(file: RemoteFile) -> RemoteFile:
        return file if file.sha256 else source.digest(location, file)

    total, digested = sum(file.size for file in files), []
    with (
        track("looking up digests", total, "B") as update,
        ThreadPoolExecutor(DIGESTS_AT_ONCE) as pool,
    ):
        for file in pool.map(digest, files):
            digested.append(file)
            update(sum(file.size for file in digested))
    return digested


def _listing(source: Source, location: SourceArgs, records: Path) -> Listing:
    """Return the source's listing; one that cannot change any more is taken from the last time."""
    record = _record(records, location)
    last = _recall(record)
    if last and last.immutable:
        return last
    try:
        listing = source.list_files(location)
    except Unavailable as exc:
        if last and (revision := last.origin.get("revision")):
            remedy = f"{exc.remedy}, or name the commit seen last: {revision}"
            raise Unavailable(exc.doing, exc.wrong, remedy) from exc
        raise
    if "revision" in listing.origin:
        _keep(listing, record)
        _keep(
            # Once more under its commit: arguments that name the commit itself then ask no source.
            listing.model_copy(update={"immutable": True}),
            _record(records, source.parse(_uri(listing))),
        )
    return listing


def _record(folder: Path, location: SourceArgs) -> Path:
    text = json.dumps(canonical(location), sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _recall(record: Path) -> Listing | None:
    try:
        return Listing.model_validate_json(record.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _keep(listing: Listing, record: Path) -> None:
    replace_text(record, listing.model_dump_json())
