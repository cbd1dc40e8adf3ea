"""The objects of a cluster under resourceVersions, and the watches that tell of their changes."""

import copy
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from weighbridge.conformance.kubernetes_api.apply import Path, fields_v1, merged, owned_leaves

Object = dict[str, Any]
Change = Callable[[Object], object]

_HISTORY: Final = 2000
"""Changes that a watch can begin before; an older one gets 410."""
_GRACEFUL: Final = "pods"
"""Deleted by whoever runs them, once they have ended."""
_NEEDS_VERSION: Final = "leases"
"""Updated under a resourceVersion only."""


class Key(NamedTuple):
    """Where an object lies."""

    group: str
    resource: str
    namespace: str
    name: str


class Refused(Exception):
    """The answer of an API server that does not do what it is asked."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> Object:
        """Return the body of that answer."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
            "details": self.details,
        }


@dataclass
class _Entry:
    document: Object
    owners: dict[tuple[str, str], set[Path]] = field(default_factory=dict)
    """Which paths a manager owns, by its name and the operation by which it got them."""


def timestamp(seconds: float | None = None) -> str:
    """Return a Unix time as objects have it: whole seconds."""
    at = datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """All objects. Safe for several threads.

    Documents are given out as they are kept: a change makes another one, and nobody changes what
    was read.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._entries: dict[Key, _Entry] = {}
        self._version = 1000
        self._history: deque[tuple[int, str, Key, Object]] = deque(maxlen=_HISTORY)

    def get(self, key: Key) -> Object:
        """Return an object. Raises Refused, 404."""
        with self.changed:
            return self._entry(key).document

    def find(self, key: Key) -> Object | None:
        """Return an object; None where there is none."""
        with self.changed:
            entry = self._entries.get(key)
            return entry.document if entry else None

    def list(
        self, group: str, resource: str, namespace: str = "", selector: str = ""
    ) -> tuple[list[Object], int]:
        """Return the objects of a resource, and the version at which they are this."""
        with self.changed:
            found = [
                entry.document
                for key, entry in self._entries.items()
                if (key.group, key.resource) == (group, resource)
                and namespace in ("", key.namespace)
                and selects(selector, entry.document)
            ]
            return found, self._version

    def create(self, key: Key, document: Object, manager: str) -> Object:
        """Add an object. Raises Refused, 409: there is one."""
        with self.changed:
            if key in self._entries:
                message = f'{_resource(key)} "{key.name}" already exists'
                raise Refused(409, "AlreadyExists", message, name=key.name, kind=key.resource)
            entry = _Entry({})
            new = {"status": {}, **copy.deepcopy(document)}
            self._entries[key] = entry
            entry.owners[manager, "Update"] = set(owned_leaves(new))
            return self._keep(key, entry, new, "ADDED")

    def replace(self, key: Key, document: Object, manager: str) -> Object:
        """Put another object in the place of one. Raises Refused, 409: it was changed meanwhile."""
        with self.changed:
            entry = self._entry(key)
            version = document.get("metadata", {}).get("resourceVersion", "")
            if not version and key.resource == _NEEDS_VERSION:
                message = "metadata.resourceVersion: Invalid value: 0: must be specified"
                raise Refused(422, "Invalid", message)
            self._check_version(key, entry, version)
            new = copy.deepcopy(document)
            self._own_changes(entry, new, manager)
            new["status"] = entry.document.get("status", {})
            return self._keep(key, entry, new, "MODIFIED")

    def change(self, key: Key, change: Change, manager: str = "") -> Object:
        """Change an object in place; without a manager, as a controller does its status."""
        with self.changed:
            entry = self._entry(key)
            new = copy.deepcopy(entry.document)
            change(new)
            self._check_version(key, entry, new.get("metadata", {}).get("resourceVersion", ""))
            if manager:
                self._own_changes(entry, new, manager)
            return self._keep(key, entry, new, "MODIFIED", is_owned=bool(manager))

    def apply(
        self, key: Key, document: Object, manager: str, *, force: bool
    ) -> tuple[Object, bool]:
        """Apply a manager's configuration; return the object, and whether it is new.

        Raises:
            Refused: 409, another manager owns a field and wants another value, or the
                configuration names another resourceVersion.
        """
        with self.changed:
            applied = owned_leaves(document)
            is_new = key not in self._entries
            head = {name: document[name] for name in ("apiVersion", "kind")}
            entry = self._entries.get(key) or _Entry({**head, "metadata": {}})
            version = document["metadata"].get("resourceVersion", "")
            if version:
                if is_new:
                    raise _not_found(key)
                self._check_version(key, entry, version)
            me = (manager, "Apply")
            before, live = entry.owners.get(me, set()), owned_leaves(entry.document)
            disputed = {
                path: other
                for other, paths in entry.owners.items()
                for path in paths & applied.keys()
                if other != me and live.get(path) != applied[path]
            }
            if disputed and not force:
                raise _conflict(disputed)
            for path, other in disputed.items():
                entry.owners[other].discard(path)
            others = set().union(*(paths for who, paths in entry.owners.items() if who != me))
            new = merged(entry.document, before, others, applied)
            entry.owners[me] = set(applied)
            self._entries[key] = entry
            return self._keep(key, entry, new, "ADDED" if is_new else "MODIFIED"), is_new

    def delete(self, key: Key, preconditions: Mapping[str, str], grace: float | None) -> Object:
        """Delete an object; a pod is only marked, and goes once it has ended.

        Raises:
            Refused: 404; 409, it is not the one that is meant.
        """
        with self.changed:
            entry = self._entry(key)
            metadata = entry.document["metadata"]
            for name in ("uid", "resourceVersion"):
                if preconditions.get(name, metadata[name]) != metadata[name]:
                    message = f"Precondition failed: {name} in precondition: {preconditions[name]}"
                    raise Refused(409, "Conflict", message)
            if key.resource == _GRACEFUL and grace != 0:
                if "deletionTimestamp" in metadata:
                    return entry.document
                new = copy.deepcopy(entry.document)
                seconds = new["spec"].get("terminationGracePeriodSeconds", 30)
                new["metadata"]["deletionTimestamp"] = timestamp()
                new["metadata"]["deletionGracePeriodSeconds"] = grace or seconds
                return self._keep(key, entry, new, "MODIFIED")
            return self.remove(key)

    def remove(self, key: Key) -> Object:
        """Take an object away at once. Raises Refused, 404."""
        with self.changed:
            document = self._entry(key).document
            del self._entries[key]
            self._tell("DELETED", key, document)
            return document

    def watch(
        self, group: str, resource: str, namespace: str, selector: str, version: int, seconds: float
    ) -> Iterator[Object]:
        """Yield the changes after a version as they come.

        Raises:
            Refused: 410, the version is too old.
        """
        deadline = time.monotonic() + seconds
        while True:
            with self.changed:
                if self._history and version < self._history[0][0] - 1:
                    raise Refused(410, "Expired", f"too old resource version: {version}")
                news = [change for change in self._history if change[0] > version]
                if not news:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return
                    self.changed.wait(left)
            version = news[-1][0] if news else version
            for _, kind, key, document in news:
                is_there = (key.group, key.resource) == (group, resource)
                is_there = is_there and namespace in ("", key.namespace)
                if is_there and selects(selector, document):
                    yield {"type": kind, "object": document}

    def _entry(self, key: Key) -> _Entry:
        try:
            return self._entries[key]
        except KeyError:
            raise _not_found(key) from None

    def _check_version(self, key: Key, entry: _Entry, version: str) -> None:
        if version and version != entry.document["metadata"]["resourceVersion"]:
            message = (
                f'Operation cannot be fulfilled on {_resource(key)} "{key.name}": the object has '
                "been modified; please apply your changes to the latest version and try again"
            )
            raise Refused(409, "Conflict", message, name=key.name, kind=key.resource)

    def _own_changes(self, entry: _Entry, new: Object, manager: str) -> None:
        """Have a manager own what it has changed, and nobody what is gone."""
        before, after = owned_leaves(entry.document), owned_leaves(new)
        changed = {path for path, value in after.items() if before.get(path, ...) != value}
        for owner, paths in entry.owners.items():
            entry.owners[owner] = (paths & after.keys()) - changed
        entry.owners.setdefault((manager, "Update"), set()).update(changed)

    def _keep(
        self, key: Key, entry: _Entry, new: Object, kind: str, *, is_owned: bool = True
    ) -> Object:
        old, metadata = entry.document, new.setdefault("metadata", {})
        before = old.get("metadata", {})
        metadata["name"] = key.name
        if key.namespace:
            metadata["namespace"] = key.namespace
        metadata["uid"] = before.get("uid") or str(uuid.uuid4())
        metadata["creationTimestamp"] = before.get("creationTimestamp") or timestamp()
        metadata["generation"] = before.get("generation", 0 if old.get("spec") else 1)
        if old.get("spec") != new.get("spec") and before:
            metadata["generation"] += 1
        if is_owned:
            metadata["managedFields"] = _managed_fields(entry, new)
        metadata["resourceVersion"] = before.get("resourceVersion", "")
        if kind == "ADDED" or new != old:
            self._version += 1
            metadata["resourceVersion"] = str(self._version)
            entry.document = new
            self._tell(kind, key, new)
        return entry.document

    def _tell(self, kind: str, key: Key, document: Object) -> None:
        if kind == "DELETED":
            self._version += 1
        self._history.append((self._version, kind, key, document))
        self.changed.notify_all()


def _managed_fields(entry: _Entry, document: Object) -> list[Object]:
    version = document.get("apiVersion", "")
    return [
        {"manager": manager, "operation": operation, "apiVersion": version}
        | {"fieldsType": "FieldsV1", "fieldsV1": fields_v1(paths)}
        for (manager, operation), paths in entry.owners.items()
        if paths
    ]


def selects(selector: str, document: Object) -> bool:
    """Whether an object has all labels of a selector such as `app=shop,tier!=web,x`."""
    labels = document.get("metadata", {}).get("labels", {})
    for requirement in filter(None, selector.split(",")):
        name, separator, value = requirement.partition("=")
        if name.endswith("!"):
            if labels.get(name[:-1]) == value:
                return False
        elif (labels.get(name) != value.lstrip("=")) if separator else (name not in labels):
            return False
    return True


def _resource(key: Key) -> str:
    return f"{key.resource}.{key.group}" if key.group else key.resource


def _not_found(key: Key) -> Refused:
    message = f'{_resource(key)} "{key.name}" not found'
    return Refused(404, "NotFound", message, name=key.name, kind=key.resource)


def _conflict(disputed: Mapping[Path, tuple[str, str]]) -> Refused:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager}"',
            "field": "." + ".".join(map(str, path)),
        }
        for path, (manager, _) in disputed.items()
    ]
    message = f"Apply failed with {len(causes)} conflict{'s' * (len(causes) > 1)}: "
    message += "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return Refused(409, "Conflict", message, causes=causes)
