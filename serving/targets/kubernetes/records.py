"""Where a target in a cluster keeps its records: a ConfigMap and a coordination Lease beside it."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from weighbridge.serving.targets.kubernetes import names
from weighbridge.serving.targets.kubernetes.api import API_VERSIONS, Api
from weighbridge.serving.targets.kubernetes.refusals import Conflict, NoAnswer, NotFound
from weighbridge.serving.targets.shared_records import Lease, OutOfDate, SharedPlace

TRIES: Final = (0.2, 0.5, 1.0, 2.0)
"""Seconds between tries, where nobody knows whether a write was done."""


class ClusterPlace(SharedPlace):
    """A target's ConfigMap and Lease in its namespace, each under its `resourceVersion`."""

    def __init__(self, api: Api, namespace: str, target: str) -> None:
        self._api = api
        self._namespace = namespace
        self._object = f"{names.target_name(target)}-records"
        self._labels = names.target_labels(target)
        self.name = f"configmap {self._object} in namespace {namespace} at {api.url}"

    def read_documents(self) -> tuple[Mapping[str, str], str]:
        """Return all documents by name, and their version. Raises Unavailable."""
        found = self._api.find("ConfigMap", self._namespace, self._object)
        if found is None:
            return {}, ""
        return found.get("data") or {}, str(found["metadata"]["resourceVersion"])

    def write_documents(self, documents: Mapping[str, str], version: str) -> str:
        """Replace all documents, and return the new version. Raises OutOfDate, Unavailable."""
        fields = {"data": dict(documents)}
        return self._written("ConfigMap", fields, version, documents, self.read_documents)

    def read_lease(self) -> tuple[Lease, str]:
        """Return who holds the lock, and the version of that. Raises Unavailable."""
        found = self._api.find("Lease", self._namespace, self._object)
        if found is None:
            return Lease(), ""
        return _read_back(found.get("spec") or {}), str(found["metadata"]["resourceVersion"])

    def write_lease(self, lease: Lease, version: str) -> str:
        """Replace who holds the lock, and return the new version. Raises OutOfDate, Unavailable."""
        spec: dict[str, Any] = {
            "holderIdentity": lease.holder,
            # Whole seconds, and no lease of none.
            "leaseDurationSeconds": max(1, round(lease.seconds)),
            "leaseTransitions": lease.transitions,
            "acquireTime": _micro_time(lease.acquired),
            "renewTime": _micro_time(lease.renewed),
        }
        return self._written("Lease", {"spec": spec}, version, _read_back(spec), self.read_lease)

    def _written(
        self,
        kind: str,
        fields: Mapping[str, Any],
        version: str,
        wanted: object,
        read: Callable[[], tuple[object, str]],
    ) -> str:
        """Write, and where nobody knows whether that was done, look, and do it again if need be."""
        for pause in TRIES:
            try:
                return self._write(kind, fields, version)
            except NoAnswer:
                time.sleep(pause)
                found, newest = read()
                if newest != version and found == wanted:
                    return newest
        return self._write(kind, fields, version)

    def _write(self, kind: str, fields: Mapping[str, Any], version: str) -> str:
        metadata = {"name": self._object, "namespace": self._namespace, "labels": self._labels}
        manifest = {"apiVersion": API_VERSIONS.get(kind, "v1"), "kind": kind, **fields}
        try:
            if version:
                manifest["metadata"] = {**metadata, "resourceVersion": version}
                written = self._api.replace(manifest)
            else:
                written = self._api.create({**manifest, "metadata": metadata})
        except Conflict as exc:
            raise OutOfDate(str(exc)) from exc
        except NotFound as exc:
            # Somebody removed it; a namespace that is gone is told as such.
            if not version or exc.is_of_namespace:
                raise
            raise OutOfDate(str(exc)) from exc
        return str(written["metadata"]["resourceVersion"])


def _read_back(spec: Mapping[str, Any]) -> Lease:
    return Lease(
        holder=spec.get("holderIdentity") or "",
        transitions=spec.get("leaseTransitions") or 0,
        seconds=float(spec.get("leaseDurationSeconds") or 0),
        acquired=_unix(spec.get("acquireTime")),
        renewed=_unix(spec.get("renewTime")),
    )


def _micro_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _unix(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0
