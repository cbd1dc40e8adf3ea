"""What a recipe adds to our manifests: for what a cluster wants and we don't know."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from weighbridge.core.errors import BadInput

Manifest = dict[str, Any]


def with_overlay(
    manifests: Sequence[Manifest], parts: Sequence[Mapping[str, Any]]
) -> list[Manifest]:
    """Return the manifests with each part merged into those of its kind and, if given, its name.

    Mappings are merged deeply; lists whose entries have a `name` are merged by it, others are
    replaced; null removes.
    """
    merged = [deepcopy(manifest) for manifest in manifests]
    for part in parts:
        merged = [_merged(one, part) if _is_meant(one, part) else one for one in merged]
    return merged


def check_overlay(manifests: Sequence[Manifest], parts: Sequence[Mapping[str, Any]]) -> None:
    """Raise BadInput where a part is merged into none of the manifests."""
    for part in parts:
        if not any(_is_meant(manifest, part) for manifest in manifests):
            kinds = ", ".join(dict.fromkeys(manifest["kind"] for manifest in manifests))
            raise BadInput(
                "merging deploy.target.overlay",
                f"there is no {part['kind']} {_name_of(part)}".rstrip(),
                f"what there is: {kinds}",
            )


def _is_meant(manifest: Manifest, part: Mapping[str, Any]) -> bool:
    return manifest["kind"] == part["kind"] and (
        not _name_of(part) or manifest["metadata"]["name"] == _name_of(part)
    )


def _name_of(part: Mapping[str, Any]) -> str:
    return str((part.get("metadata") or {}).get("name", ""))


def _merged(ours: Any, theirs: Any) -> Any:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        kept = {key: value for key, value in ours.items() if theirs.get(key, "") is not None}
        added = {
            key: _merged(ours.get(key), value) for key, value in theirs.items() if value is not None
        }
        return {**kept, **added}
    if _is_named(ours) and _is_named(theirs):
        by_name = {entry["name"]: entry for entry in ours}
        for entry in theirs:
            by_name[entry["name"]] = _merged(by_name.get(entry["name"]), entry)
        return list(by_name.values())
    return deepcopy(theirs)


def _is_named(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(entry, Mapping) and "name" in entry for entry in value)
    )
