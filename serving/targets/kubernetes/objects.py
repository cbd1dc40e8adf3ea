"""What objects of a cluster say, as dictionaries; of pods see pod_states.py."""

from collections.abc import Mapping
from typing import Any

from weighbridge.serving.targets.kubernetes import names


def labels_of(document: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the labels of an object."""
    labels: Mapping[str, str] = document["metadata"].get("labels") or {}
    return labels


def revision_of(document: Mapping[str, Any]) -> str:
    """Return the revision that an object belongs to; empty: to none."""
    return labels_of(document).get(names.REVISION_LABEL, "")


def is_rolled_out(deployment: Mapping[str, Any]) -> bool:
    """Whether all pods that a Deployment is to have are of its newest template, and ready."""
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    # An autoscaler's number is in the spec as well.
    wanted = max(1, deployment["spec"].get("replicas") or 0)
    return (
        status.get("observedGeneration", 0) >= metadata["generation"]
        and (status.get("updatedReplicas") or 0) >= wanted
        and (status.get("readyReplicas") or 0) >= wanted
    )


def leads_to(live: Mapping[str, Any] | None, revision: str, service: str) -> bool:
    """Whether a Service, or the last rule of an HTTPRoute, sends requests to a revision."""
    spec = (live or {}).get("spec", {})
    if "rules" in spec:
        backends = spec["rules"][-1].get("backendRefs") or ()
        return any(one["name"] == service and one.get("weight", 1) for one in backends)
    return bool((spec.get("selector") or {}).get(names.REVISION_LABEL) == revision)


def contains(live: Any, wanted: Any) -> bool:
    """Whether an object has all that a manifest says; the API server adds defaults."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted
        return all(
            key in live and contains(live[key], value) if value or value == 0 else not live.get(key)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return not wanted and not live
        return all(contains(one, other) for one, other in zip(live, wanted, strict=True))
    return bool(live == wanted)
