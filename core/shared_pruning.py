"""What is old in the shared store, and the removal of what nothing needs.

Records go first, then lists of files, then files: whoever looks meanwhile finds what a name leads
to, or no name. Only what was written long ago goes, since another home may be sharing right now;
one that shares just then what is about to go may lose it, and computes it anew.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.core import s3
from weighbridge.core.artifact import recorded_in
from weighbridge.core.shared_store import SharedStore, blob_path


@dataclass(frozen=True)
class SharedHolding:
    """An artifact in the shared store, or what belongs to none."""

    what: str
    bytes: int
    why: str
    """Why it stays; empty where nothing needs it."""
    paths: Mapping[str, int]
    """What is to go: bytes by path below the store's prefix."""


def shared_holdings(
    shared: SharedStore, needed: Mapping[str, str], days: float
) -> list[SharedHolding]:
    """Return what the shared store holds, and why each of it stays or does not.

    Args:
        shared: The store.
        needed: By digest, what needs an artifact.
        days: Age, since it was written, from which what nothing needs may go.

    Raises:
        BadInput: the bucket does not exist, or the credentials are refused.
        Unavailable: the service does not answer.
    """
    objects = s3.stored_below(shared.location)
    sizes = {stored.file.path: stored.file.size for stored in objects}
    young = {stored.file.path for stored in objects if stored.written > _before(days)}
    records = {path: _value(shared, path) for path in sizes if path.startswith("stages/")}
    trees = {
        f"sha256:{path.removeprefix('trees/').removesuffix('.json')}": path
        for path in sizes
        if path.startswith("trees/")
    }
    contents = {digest: _contents(shared, path) for digest, path in trees.items()}
    reasons = {
        digest: _why(digest, path, records, needed, young, days) for digest, path in trees.items()
    }
    kept = {blob for digest, why in reasons.items() if why for blob in contents[digest]}
    holdings = []
    for digest, why in reasons.items():
        going = [*_leading_to(digest, records), trees[digest], *(contents[digest] - kept)]
        holdings.append(
            SharedHolding(
                f"artifact {digest.removeprefix('sha256:')[:12]}",
                sum(sizes.get(blob, 0) for blob in contents[digest]),
                why,
                {} if why else {path: sizes.get(path, 0) for path in going},
            )
        )
    return [*holdings, *_strays(sizes, records, contents, young)]


def remove(shared: SharedStore, holdings: Sequence[SharedHolding]) -> None:
    """Remove what nothing needs: all records, then all lists, then all files."""
    paths = dict.fromkeys(path for one in holdings for path in one.paths)
    for kind in ("checkpoints/", "stages/", "trees/", "blobs/"):
        s3.delete(shared.location, [path for path in paths if path.startswith(kind)])


def freed_by(holdings: Iterable[SharedHolding]) -> int:
    """Return the bytes that removing would free: a file of two artifacts counts once."""
    going = {path: size for one in holdings for path, size in one.paths.items()}
    return sum(going.values())


def _before(days: float) -> float:
    return time.time() - days * 86400


def _why(
    digest: str,
    path: str,
    records: Mapping[str, Collection[str]],
    needed: Mapping[str, str],
    young: Collection[str],
    days: float,
) -> str:
    if digest in needed:
        return needed[digest]
    if path in young:
        return f"written less than {days:g} days ago"
    if record := next((one for one in _leading_to(digest, records) if one in young), ""):
        return f"stage {record.split('/')[1]} was finished with it less than {days:g} days ago"
    return ""


def _leading_to(digest: str, records: Mapping[str, Collection[str]]) -> list[str]:
    return [path for path, digests in records.items() if digest in digests]


def _strays(
    sizes: Mapping[str, int],
    records: Mapping[str, Collection[str]],
    contents: Mapping[str, Collection[str]],
    young: Collection[str],
) -> Iterator[SharedHolding]:
    """Yield what belongs to no artifact: records of figures alone, files of broken-off uploads."""
    listed = {blob for blobs in contents.values() for blob in blobs}
    groups = {
        "records of stages without artifacts": [
            path for path, named in records.items() if not named
        ],
        "files of uploads that were broken off": [
            path for path in sizes if path.startswith("blobs/") and path not in listed
        ],
        "checkpoints of fine-tunes": [path for path in sizes if path.startswith("checkpoints/")],
    }
    for what, paths in groups.items():
        if old := {path: sizes[path] for path in paths if path not in young}:
            yield SharedHolding(what, sum(old.values()), "", old)


def _value(shared: SharedStore, path: str) -> set[str]:
    """Return the digests of the artifacts in a stage's result."""
    return {digest for digest, _ in recorded_in(_document(shared, path).get("value"))}


def _contents(shared: SharedStore, path: str) -> set[str]:
    """Return the paths of an artifact's files."""
    try:
        return {blob_path(file["sha256"]) for file in _document(shared, path).get("files", [])}
    except (KeyError, TypeError):
        return set()


def _document(shared: SharedStore, path: str) -> dict[str, Any]:
    """Return a record or a list of files; one that cannot be read leads nowhere."""
    try:
        document = json.loads(s3.get(shared.location, shared.location.folder + path) or b"{}")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
