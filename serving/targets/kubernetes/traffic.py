"""Who gets clients' requests: an HTTPRoute with shares, or a Service that turns at once."""

from collections.abc import Mapping
from typing import Any

from weighbridge.core.errors import BadInput
from weighbridge.serving.targets.kubernetes import names
from weighbridge.serving.targets.kubernetes.args import GatewayRef, KubernetesArgs

VERSION_HEADER = "X-Weighbridge-Version"
"""A request that names a revision in it goes to that one alone."""


def traffic_manifests(
    target: str, args: KubernetesArgs, shares: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Return what sends clients' requests to these revisions by these shares.

    Raises:
        BadInput: there is no gateway, and more than one revision is to have a share.
    """
    if args.gateway:
        backends = {names.revision_name(target, one): (one, shares[one]) for one in sorted(shares)}
        return [_route(target, args, args.gateway, backends)]
    serving = [revision for revision, share in shares.items() if share]
    if len(serving) > 1:
        raise BadInput(
            f"sharing out the requests at {target}",
            f"{' and '.join(serving)} are both to have some, and there is no gateway",
            "name one in deploy.target.gateway, or go to all of them in one step",
        )
    # A revision that does not exist: a Service without a selector would keep its last endpoints.
    selector = names.revision_selector(target, serving[0] if serving else "none")
    return [service(names.target_name(target), args, names.target_labels(target), selector)]


def service(
    name: str, args: KubernetesArgs, labels: Mapping[str, str], selector: Mapping[str, str]
) -> dict[str, Any]:
    """Return a Service in front of the pods that a selector tells."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": args.namespace, "labels": dict(labels)},
        "spec": {
            "selector": dict(selector),
            "ports": [{"name": "http", "port": args.port, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def rolling_traffic(target: str, args: KubernetesArgs) -> list[dict[str, Any]]:
    """Return the HTTPRoute, where there is a gateway, to the one Service of a target."""
    if not args.gateway:
        return []
    return [_route(target, args, args.gateway, {names.target_name(target): ("", 100)})]


def _route(
    target: str, args: KubernetesArgs, gateway: GatewayRef, backends: Mapping[str, tuple[str, int]]
) -> dict[str, Any]:
    """Return the route to Services, each with the revision to name for it and its share."""
    parent = {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "name": gateway.name,
        "namespace": gateway.namespace or args.namespace,
        **({"sectionName": gateway.listener} if gateway.listener else {}),
    }
    pinned = [
        _rule([_backend(args, name, 1)], revision)
        for name, (revision, _) in backends.items()
        if revision
    ]
    shared = _rule([_backend(args, name, share) for name, (_, share) in backends.items()])
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {
            "name": names.target_name(target),
            "namespace": args.namespace,
            "labels": names.target_labels(target),
        },
        "spec": {
            "parentRefs": [parent],
            "hostnames": [gateway.hostname],
            "rules": [*pinned, shared],
        },
    }


def _rule(backends: list[dict[str, Any]], pinned_to: str = "") -> dict[str, Any]:
    # Clients get OpenAI's protocol alone; what the pods tell of themselves stays in the cluster.
    match: dict[str, Any] = {"path": {"type": "PathPrefix", "value": "/v1"}}
    if pinned_to:
        match["headers"] = [{"type": "Exact", "name": VERSION_HEADER, "value": pinned_to}]
    return {
        "matches": [match],
        "backendRefs": backends,
        # None: gateways cut answers after a time of their own otherwise, often 15 seconds.
        "timeouts": {"request": "0s", "backendRequest": "0s"},
    }


def _backend(args: KubernetesArgs, name: str, weight: int) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": name, "port": args.port, "weight": weight}
