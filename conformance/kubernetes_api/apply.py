"""Server-side apply: which manager owns which field of an object, and what a new configuration of
one of them makes of it.

A document is taken apart into its leaves. Items of a list that has a key are told apart by it;
any other list, and a selector, is one leaf.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

Path = tuple[Any, ...]
"""Names of fields; an item of a list is a tuple of pairs: `(("name", "bento"),)`."""
Leaves = dict[Path, Any]

_KEYS: Final = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "conditions": ("type",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_PORT_KEYS: Final = (("containerPort", "protocol"), ("port", "protocol"))
_DEFAULTS: Final = {"protocol": "TCP"}
_ATOMIC: Final = frozenset({"selector", "podSelector", "nodeSelector", "labelSelector"})
_NOT_OWNED: Final = frozenset(
    {"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "namespace"}
    | {"name", "deletionTimestamp", "deletionGracePeriodSeconds"}
)
"""Of the metadata: the server's own, or what tells objects apart."""


def owned_leaves(document: Mapping[str, Any]) -> Leaves:
    """Return the fields of an object that managers can own, by their paths."""
    leaves = {
        path: value
        for path, value in _leaves(document, ())
        if path[0] not in ("apiVersion", "kind", "status")
    }
    # Of the metadata itself only its fields are anybody's, and of those not all.
    return {
        path: value
        for path, value in leaves.items()
        if path[0] != "metadata" or (len(path) > 1 and path[1] not in _NOT_OWNED)
    }


def merged(
    live: Mapping[str, Any], before: Collection[Path], others: Collection[Path], applied: Leaves
) -> dict[str, Any]:
    """Return an object after a manager applied its configuration.

    Args:
        live: the object.
        before: what the manager owned until now.
        others: what other managers own.
        applied: all that the manager wants to say of the object from now on.
    """
    gone = set(before) - applied.keys() - set(others)
    leaves = {path: value for path, value in _leaves(live, ()) if path not in gone} | applied
    # An empty map says nothing beside its own fields.
    inner = {path[:n] for path in leaves for n in range(len(path))}
    return _built({path: v for path, v in leaves.items() if not (v == {} and path in inner)})


def fields_v1(paths: Collection[Path]) -> dict[str, Any]:
    """Return owned fields in the form of `metadata.managedFields`."""
    fields: dict[str, Any] = {}
    for path in paths:
        place = fields
        for name in path:
            place = place.setdefault(_field_name(name), {})
    return fields


def _field_name(name: Any) -> str:
    import json

    if isinstance(name, tuple):
        return f"k:{json.dumps(dict(name), separators=(',', ':'))}"
    return f"f:{name}"


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping) and value and not (path and path[-1] in _ATOMIC):
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and value and (keys := _keys(path, value)):
        for item in value:
            token = tuple((key, item.get(key, _DEFAULTS.get(key))) for key in keys)
            yield from _leaves(item, (*path, token))
    else:
        yield path, value


def _keys(path: Path, items: list[Any]) -> tuple[str, ...]:
    candidates = _PORT_KEYS if path[-1] == "ports" else (_KEYS.get(path[-1], ()),)
    for keys in candidates:
        if keys and all(isinstance(i, Mapping) and i.get(keys[0]) is not None for i in items):
            return keys
    return ()


def _built(leaves: Leaves) -> dict[str, Any]:
    tree: dict[Any, Any] = {}
    for path, value in leaves.items():
        place = tree
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    built: dict[str, Any] = _without_keys(tree)
    return built


def _without_keys(tree: Any) -> Any:
    """Return the document with lists where a map is by their items' keys."""
    if not isinstance(tree, dict):
        return tree
    if tree and all(isinstance(name, tuple) for name in tree):
        return [_without_keys(item) for item in tree.values()]
    return {name: _without_keys(inner) for name, inner in tree.items()}
