"""What our container images have in common, for whoever builds them and whoever runs them."""

from collections.abc import Mapping
from typing import Final

USER: Final = 10001
"""User and group, as a number: Kubernetes cannot tell that a name is not root's."""
HOME: Final = "/var/lib/weighbridge"
CACHE: Final = "/var/cache/weighbridge"
"""WEIGHBRIDGE_HOME and WEIGHBRIDGE_CACHE in a container; the user may write there."""


def pod_security(user: int = USER) -> dict[str, object]:
    """Return a pod's `securityContext` under Kubernetes' restricted standard, with a user's number:
    kubelet can't tell whether a name is root.
    """
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, object]:
    """Return a container's `securityContext` under that standard, on a read-only root."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def one_per_node(labels: Mapping[str, str]) -> dict[str, object]:
    """Return the `podAntiAffinity` by which no two pods with these labels share a node."""
    selector = {"matchLabels": dict(labels)}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
