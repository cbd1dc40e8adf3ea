"""Who may do what: the Role that Weighbridge needs in its namespace, and who may reach the pods."""

from typing import Any, Final
from urllib.parse import urlsplit

from weighbridge.serving.targets.kubernetes import names
from weighbridge.serving.targets.kubernetes.api import API_VERSIONS, RESOURCES
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs

_ALL: Final = ("get", "list", "watch", "create", "patch", "delete")
_READ: Final = ("get", "list", "watch")
_RECORDS: Final = (*_READ, "create", "update")
"""What is written under the version that was read."""


def role_manifests(target: str, args: KubernetesArgs) -> list[dict[str, Any]]:
    """Return the ServiceAccount, Role and RoleBinding of whoever rolls out: nothing cluster-wide.

    Args:
        target: its name.
        args: its arguments; they say which kinds of objects are made.
    """
    name = f"{names.target_name(target)}-deployer"
    common = {"namespace": args.namespace, "labels": names.target_labels(target)}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": names.MANAGER, **common},
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name, **common},
            "rules": _rules(args),
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, **common},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": names.MANAGER, "namespace": args.namespace}
            ],
        },
    ]


def network_policy(target: str, args: KubernetesArgs) -> dict[str, Any]:
    """Return who may ask a target's pods, at their one port.

    Kubernetes always lets a node ask the pods that run on it, so probes need no rule. Where the
    namespaces of clients are known, no other may ask.
    """
    ingress: dict[str, Any] = {"ports": [{"port": names.HTTP_PORT, "protocol": "TCP"}]}
    if sources := _sources(args):
        ingress["from"] = sources
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": names.target_name(target),
            "namespace": args.namespace,
            "labels": names.target_labels(target),
        },
        "spec": {
            "podSelector": {"matchLabels": names.target_selector(target)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [ingress],
            "egress": _egress(args),
        },
    }


def _sources(args: KubernetesArgs) -> list[dict[str, Any]]:
    """Return who may ask; nobody named: anybody, since Services may be reached from outside."""
    spaces = args.clients or ((args.gateway.namespace or args.namespace,) if args.gateway else ())
    if not spaces:
        return []
    return [
        # Our own as well: of the deployer, and of whoever scrapes.
        *(
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}}}
            for space in dict.fromkeys((*spaces, args.namespace))
        ),
        *({"ipBlock": {"cidr": network}} for network in args.networks),
    ]


def _egress(args: KubernetesArgs) -> list[dict[str, Any]]:
    """Return where pods may connect to: nowhere, but for the store that the Bento comes from."""
    if args.model != "init":
        return []
    dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return [{"ports": dns}, {"ports": [{"port": _store_port(args), "protocol": "TCP"}]}]


def _store_port(args: KubernetesArgs) -> int:
    endpoint = urlsplit(args.store.endpoint if args.store else "")
    return endpoint.port or (80 if endpoint.scheme == "http" else 443)


def _rules(args: KubernetesArgs) -> list[dict[str, Any]]:
    kinds = [
        ("apps", ("deployments",), _ALL),
        ("", ("services",), _ALL),
        ("", ("configmaps",), _RECORDS),
        ("", ("pods",), _READ),
        ("", ("pods/log",), ("get",)),
        # Questions to a pod from outside the cluster; a POST counts as `create`.
        ("", ("pods/proxy",), ("get", "create")),
        ("coordination.k8s.io", ("leases",), _RECORDS),
        ("policy", ("poddisruptionbudgets",), _ALL),
        ("networking.k8s.io", ("networkpolicies",), _ALL),
    ]
    if args.gateway:
        kinds.append(("gateway.networking.k8s.io", ("httproutes",), _ALL))
    if args.autoscale:
        kind = args.autoscale.kind
        kinds.append((API_VERSIONS[kind].partition("/")[0], (RESOURCES[kind],), _ALL))
    return [
        {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
        for group, resources, verbs in kinds
    ]
