"""What a cluster lacks of what a rollout needs, said before anything is started."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.targets.kubernetes import names
from weighbridge.serving.targets.kubernetes.access import role_manifests
from weighbridge.serving.targets.kubernetes.api import Api
from weighbridge.serving.targets.kubernetes.args import GatewayRef, KubernetesArgs
from weighbridge.serving.targets.kubernetes.manifests import target_manifests, traffic_manifests
from weighbridge.serving.targets.kubernetes.refusals import Forbidden

_BAD: Final = ("Accepted", "Programmed", "ResolvedRefs")
"""Conditions of a gateway, and of a route, that must hold."""


def check_cluster(api: Api, target: str, args: KubernetesArgs) -> None:
    """Check that the cluster would take a target.

    Raises:
        Unavailable: it does not answer, or lacks the namespace, a right, or the Gateway API.
        BadInput: there is no such gateway, or no GPU.
    """
    doing = f"deploying to {target}"
    # Where our account may not look, what lacks is said when it is needed.
    with contextlib.suppress(Forbidden):
        if api.find("Namespace", "", args.namespace) is None:
            wrong = f"there is no namespace {args.namespace}"
            raise Unavailable(doing, wrong, f"kubectl create namespace {args.namespace}")
    _check_rights(api, doing, target, args)
    for manifest in (*target_manifests(target, args), *traffic_manifests(target, args, {})):
        api.apply(manifest, dry_run=True)
    if args.gateway is not None:
        _check_gateway(api, doing, args, args.gateway)
    if args.resources.gpus:
        _check_gpus(api, doing, args)


def route_problem(api: Api, target: str, args: KubernetesArgs) -> str:
    """Return why the gateway does not serve the target's route as it is now; empty: it does."""
    gateway = args.gateway
    if gateway is None:
        return ""
    route = api.find("HTTPRoute", args.namespace, names.target_name(target))
    if route is None:
        return ""
    of_gateway = [
        parent
        for parent in (route.get("status") or {}).get("parents") or ()
        if parent["parentRef"].get("name") == gateway.name
    ]
    if not of_gateway:
        return f"gateway {gateway.name} has not taken the route"
    for parent in of_gateway:
        for condition in parent.get("conditions") or ():
            if condition.get("observedGeneration", 0) < route["metadata"].get("generation", 0):
                return f"gateway {gateway.name} has not seen the newest route"
            # A route without a version behind it leads nowhere yet, and is right so.
            if condition["type"] in _BAD and condition["status"] == "False":
                return _said(f"gateway {gateway.name} refuses the route", condition)
    return ""


def _check_rights(api: Api, doing: str, target: str, args: KubernetesArgs) -> None:
    """Raise Unavailable, with all that is missing, where the account may not do what it must."""
    role = next(one for one in role_manifests(target, args) if one["kind"] == "Role")
    wanted = list(_wanted(role["rules"]))
    missing = [
        f"{verb} {resource}.{group}".rstrip(".")
        for group, resource, verb in wanted
        if not api.may(verb, group, resource, args.namespace)
    ]
    if missing:
        wrong = f"this account may not, in namespace {args.namespace}: {', '.join(missing)}"
        remedy = "apply the Role: weighbridge render RECIPE --role | kubectl apply -f -"
        if len(missing) == len(wanted):
            # So it is where there is no such namespace, and we may not look whether there is.
            remedy += f"; before it, where there is none: kubectl create namespace {args.namespace}"
        raise Unavailable(doing, wrong, remedy)


def _wanted(rules: list[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    # Whoever may read, change and delete something may list and watch it as a rule: where not, the
    # call itself says so.
    for rule in rules:
        verbs = [verb for verb in rule["verbs"] if verb not in ("list", "watch")]
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in verbs:
                    yield group, resource, verb


def _check_gateway(api: Api, doing: str, args: KubernetesArgs, gateway: GatewayRef) -> None:
    space = gateway.namespace or args.namespace
    with contextlib.suppress(Forbidden):
        found = api.find("Gateway", space, gateway.name)
        if found is None:
            wrong = f"there is no Gateway {gateway.name} in namespace {space}"
            raise BadInput(doing, wrong, "make it, or name another one in deploy.target.gateway")
        name = found["spec"].get("gatewayClassName", "")
        for condition in (found.get("status") or {}).get("conditions") or ():
            if condition["type"] in _BAD and condition["status"] == "False":
                raise Unavailable(doing, _said(f"Gateway {gateway.name} does not work", condition))
        if api.find("GatewayClass", "", name) is None:
            wrong = f"Gateway {gateway.name} is of class {name}, and there is no such GatewayClass"
            raise Unavailable(doing, wrong, "install a controller that brings it")


def _check_gpus(api: Api, doing: str, args: KubernetesArgs) -> None:
    resource, wanted = args.resources.gpu_resource, args.resources.gpus
    with contextlib.suppress(Forbidden):
        most = max(
            (
                int((node.get("status") or {}).get("allocatable", {}).get(resource, 0))
                for node in api.find_all("Node")
            ),
            default=0,
        )
        if most < wanted:
            wrong = f"a replica asks for {wanted} {resource}, and no node has more than {most}"
            remedy = "ask for fewer in deploy.target.resources.gpus, or install the device plugin"
            raise BadInput(doing, wrong, remedy)


def _said(what: str, condition: Mapping[str, Any]) -> str:
    return f"{what}: {condition.get('reason', '')}: {condition.get('message', '')}".rstrip(": ")
