"""What is old in the shared store, and the removal of what nothing needs.

Records go first, then lists of files, then files: whoever looks meanwhile finds what a name leads
to, or no name. Only what was written long ago goes, since another home may be sharing right now;
one that shares just then what is about to go may lose it, and computes it anew.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weighbridge.core import s3
from weighbridge.core.shared_store import SharedStore


@dataclass(frozen=True)
class SharedHolding:
    """An artifact in the shared store, or what belongs to none."""

    what: str
    bytes: int
    why: str
    """Why it stays; empty where nothing needs it."""
    paths: tuple[str, ...]
    """Below the store's prefix, in the order in which they are to go."""


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
    objects = {stored.file.path: stored for stored in s3.stored_below(shared.location)}
    young = {path for path, stored in objects.items() if stored.written > _before(days)}
    records = {path: _value(shared, path) for path in objects if path.startswith("stages/")}
    trees = {
        f"sha256:{path.removeprefix('trees/').removesuffix('.json')}": path
        for path in objects
        if path.startswith("trees/")
    }
    contents = {digest: _contents(shared, path) for digest, path in trees.items()}
    reasons = {
        digest: _why(digest, path, records, needed, young, days) for digest, path in trees.items()
    }
    kept = {blob for digest, why in reasons.items() if why for blob in contents[digest]}
    holdings = [
        SharedHolding(
            f"artifact {digest.removeprefix('sha256:')[:12]}",
            sum(objects[blob].file.size for blob in contents[digest] if blob in objects),
            why,
            ()
            if why
            else (*_leading_to(digest, records), trees[digest], *(contents[digest] - kept)),
        )
        for digest, why in reasons.items()
    ]
    return [*holdings, *_strays(objects, records, contents, young)]


def remove(shared: SharedStore, holdings: Sequence[SharedHolding]) -> None:
    """Remove what nothing needs: all records, then all lists, then all files."""
    paths = dict.fromkeys(path for one in holdings if not one.why for path in one.paths)
    for kind in ("stages/", "trees/", "blobs/"):
        s3.delete(shared.location, [path for path in paths if path.startswith(kind)])


def freed_by(holdings: Sequence[SharedHolding], shared: SharedStore) -> int:
    """Return the bytes that removing would free: a file of two artifacts counts once."""
    going = {path for one in holdings if not one.why for path in one.paths}
    return sum(
        stored.file.size for stored in s3.stored_below(shared.location) if stored.file.path in going
    )


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
    objects: Mapping[str, s3.Stored],
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
            path for path in objects if path.startswith("blobs/") and path not in listed
        ],
    }
    for what, paths in groups.items():
        old = tuple(path for path in paths if path not in young)
        if old:
            yield SharedHolding(what, sum(objects[path].file.size for path in old), "", old)


def _value(shared: SharedStore, path: str) -> set[str]:
    """Return the digests of the artifacts in a stage's result."""
    _, stage, name = path.split("/", 2)
    text = shared.record(stage, name.removesuffix(".json")) or "{}"
    try:
        return set(_digests(json.loads(text).get("value")))
    # One that cannot be read leads nowhere.
    except (ValueError, AttributeError):
        return set()


def _digests(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "format" in value and "digest" in value:
            yield str(value["digest"])
        for item in value.values():
            yield from _digests(item)
    elif isinstance(value, list):
        for item in value:
            yield from _digests(item)


def _contents(shared: SharedStore, path: str) -> set[str]:
    """Return the paths of an artifact's files."""
    text = s3.get(shared.location, shared.location.folder + path) or b"{}"
    try:
        files = json.loads(text).get("files", [])
        return {f"blobs/{file['sha256'][:2]}/{file['sha256']}" for file in files}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()
