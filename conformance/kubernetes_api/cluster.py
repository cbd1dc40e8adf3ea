"""A cluster in this process: objects, controllers that follow them, nodes, and what clients see."""

import contextlib
import json
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from weighbridge.conformance.kubernetes_api import server
from weighbridge.conformance.kubernetes_api.controllers import (
    GATEWAY_API,
    Controllers,
    count_of,
    is_ending,
    is_ready,
)
from weighbridge.conformance.kubernetes_api.nodes import LOOK, PodRun, amount, requested
from weighbridge.conformance.kubernetes_api.pods import Image
from weighbridge.conformance.kubernetes_api.store import Key, Object, Refused, Store, timestamp

NAMESPACE: Final = "serving"
"""The one namespace there is at first, beside `default`."""
_NODE: Final = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi", "pods": "110"}


class Cluster:
    """A cluster, from its construction until `close`. Also a context manager.

    Args:
        images: what can be pulled, by name.
        nodes: allocatable resources by node; none: one node with enough for everything but GPUs.
        gateway_api: whether the Gateway API is installed.
        hurry: how many seconds of a preStop pass in one.
    """

    def __init__(
        self,
        images: Mapping[str, Image],
        nodes: Mapping[str, Mapping[str, str]] | None = None,
        *,
        gateway_api: bool = False,
        hurry: float = 1.0,
    ) -> None:
        self.store = Store()
        self.images = dict(images)
        self.gateway_api = gateway_api
        self.hurry = hurry
        self.closed = False
        self.rules: list[Mapping[str, Any]] | None = None
        """Rules of the Role that whoever asks has in NAMESPACE; None: everything is allowed."""
        self.failures: dict[tuple[str, str], int] = {}
        """How many requests more fail with 500, by method and the end of the path."""
        self.token = "stand-in"
        """That whoever asks must have."""
        self.asked: list[tuple[str, str]] = []
        """What the API server was asked, by method and path."""
        self.runs: dict[str, PodRun] = {}
        self._routes: list[tuple[float, dict[str, Any]]] = [(0.0, {})]
        for name in (NAMESPACE, "default"):
            self.create("v1", "Namespace", "namespaces", "", name, {})
        for name, resources in (nodes or {"node-1": {}}).items():
            status = {"allocatable": {**_NODE, **resources}}
            self.create("v1", "Node", "nodes", "", name, {"status": status, "spec": {}})
        self.api = server.serve(self)
        self._controllers = Controllers(self)
        self._controllers.start()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self.closed = True
        self.api.close()
        self._controllers.join()
        for run in self.runs.values():
            run.join()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig file that leads here, and return it."""
        context = {"cluster": "stand-in", "user": "deployer", "namespace": NAMESPACE}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stand-in",
            "clusters": [{"name": "stand-in", "cluster": {"server": self.api.url}}],
            "users": [{"name": "deployer", "user": {"token": self.token}}],
            "contexts": [{"name": "stand-in", "context": context}],
        }
        # JSON is YAML.
        path.write_text(json.dumps(document))
        return path

    # What the API server asks

    def may(self, wanted: Mapping[str, str]) -> bool:
        """Whether whoever asks may do something."""
        if self.rules is None:
            return True
        return wanted.get("namespace") == NAMESPACE and server.allows(self.rules, wanted)

    def fail_if_told(self, method: str, path: str) -> None:
        """Raise Refused, 500, where a test wants this request to fail."""
        for (verb, end), count in list(self.failures.items()):
            if verb == method and path.endswith(end) and count:
                self.failures[verb, end] = count - 1
                raise Refused(500, "InternalError", "etcdserver: request timed out")

    def log_of(self, key: Key, query: Mapping[str, str]) -> str:
        """Return the log of a pod, by the API's own parameters."""
        self.store.get(key)
        run = self.runs.get(self._uid(key))
        is_previous = query.get("previous") == "true"
        process = (run.previous if is_previous else run.process) if run else None
        if process is None:
            message = f'previous terminated container in pod "{key.name}" not found'
            raise Refused(400, "BadRequest", message if is_previous else "container is not running")
        since = query.get("sinceTime", "")
        lines = [(at, text) for at, text in process.log if not since or timestamp(at) >= since]
        if "tailLines" in query:
            lines = lines[-int(query["tailLines"]) :]
        if query.get("timestamps") != "true":
            return "".join(f"{text}\n" for _, text in lines)
        return "".join(f"{_precise(at)} {text}\n" for at, text in lines)

    def behind(self, key: Key) -> tuple[str, int]:
        """Return the address that the proxy of a pod, or a service, leads to."""
        name, _, port = key.name.removeprefix("http:").partition(":")
        if key.resource == "pods":
            pod = self.store.get(key._replace(name=name))
            ip = pod.get("status", {}).get("podIP", "")
            if not ip:
                raise Refused(503, "ServiceUnavailable", f'pod "{name}" has no address')
            return ip, _port(pod, port)
        self.store.get(key._replace(name=name))
        endpoints = self._endpoints().get(name, [])
        if not endpoints:
            message = f'no endpoints available for service "{name}"'
            raise Refused(503, "ServiceUnavailable", message)
        return random.choice(endpoints)

    def evict(self, key: Key) -> None:
        """Delete a pod, unless a PodDisruptionBudget forbids it now. Raises Refused, 429."""
        pod = self.store.get(key)
        budgets, _ = self.store.list("policy", "poddisruptionbudgets", key.namespace)
        for budget in budgets:
            spec = budget["spec"]
            labels = spec["selector"]["matchLabels"]
            if _matches(labels, pod) and not self._may_disrupt(spec, labels, key.namespace):
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                raise Refused(429, "TooManyRequests", message)
        self.store.delete(key, {}, None)

    # What nodes ask

    def node_for(self, pod: Object) -> tuple[str, str]:
        """Return a node that has room for a pod, or ("", why none has)."""
        nodes, _ = self.store.list("", "nodes")
        pods, _ = self.store.list("", "pods")
        needed, lacking = requested(pod), []
        for node in nodes:
            name = node["metadata"]["name"]
            if node["spec"].get("unschedulable"):
                lacking.append("1 node(s) were unschedulable")
                continue
            free = {n: amount(q) for n, q in node["status"]["allocatable"].items()}
            for other in pods:
                if other["spec"].get("nodeName") == name:
                    for resource, used in requested(other).items():
                        free[resource] = free.get(resource, 0.0) - used
            short = [n for n, wanted in needed.items() if wanted > free.get(n, 0.0)]
            if not short:
                return name, ""
            lacking += [f"1 Insufficient {resource}" for resource in short]
        return "", f"0/{len(nodes)} nodes are available: {', '.join(lacking)}."

    def record_event(self, key: Key, reason: str, message: str) -> None:
        """Record an event of a pod."""
        name = f"{key.name}.{time.monotonic_ns():x}"
        involved = {"kind": "Pod", "namespace": key.namespace, "name": key.name}
        fields = {"involvedObject": involved, "reason": reason, "message": message}
        with contextlib.suppress(Refused):
            self.create("v1", "Event", "events", key.namespace, name, fields)

    # What tests do

    def pods(self, selector: str = "") -> list[Object]:
        """Return the pods, those that are ending as well."""
        return self.store.list("", "pods", selector=selector)[0]

    def add_gateway(self, name: str, of_class: str = "stand-in") -> None:
        """Make a Gateway, and the class that it is of."""
        version = f"{GATEWAY_API}/v1"
        classes = Key(GATEWAY_API, "gatewayclasses", "", of_class)
        for key, kind, spec in (
            (classes, "GatewayClass", {}),
            (
                Key(GATEWAY_API, "gateways", NAMESPACE, name),
                "Gateway",
                {"gatewayClassName": of_class},
            ),
        ):
            document = {"apiVersion": version, "kind": kind, "metadata": {}, "spec": spec}
            self.store.create(key, document, "admin")

    def drain(self, node: str, timeout: float = 30.0) -> None:
        """Cordon a node and evict its pods, as `kubectl drain` does; wait until they are gone."""
        key = Key("", "nodes", "", node)
        self.store.change(key, lambda document: document["spec"].update(unschedulable=True))
        deadline = time.monotonic() + timeout
        while pods := [pod for pod in self.pods() if pod["spec"].get("nodeName") == node]:
            for pod in pods:
                metadata = pod["metadata"]
                with contextlib.suppress(Refused):
                    self.evict(Key("", "pods", metadata["namespace"], metadata["name"]))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{node} still has {len(pods)} pods")
            time.sleep(LOOK)

    def backend(self, service: str, lag: float = 0.0) -> tuple[str, int] | None:
        """Return an address that a client sends a request to which knows the cluster as it was.

        Args:
            service: name of a Service, or of an HTTPRoute.
            lag: seconds until the client learns of a change.
        """
        routes = self._as_of(time.monotonic() - lag)
        weights = routes.get("routes", {}).get(service)
        if weights:
            service = random.choices(list(weights), list(weights.values()))[0]
        endpoints = routes.get("endpoints", {}).get(service, [])
        return random.choice(endpoints) if endpoints else None

    # Parts of the above

    def publish_routes(self) -> None:
        """Keep what clients could know by now, and since when."""
        weights = {
            route["metadata"]["name"]: {
                ref["name"]: ref.get("weight", 1)
                for ref in route["spec"]["rules"][-1].get("backendRefs", [])
                if ref.get("weight", 1)
            }
            for route in self.store.list(GATEWAY_API, "httproutes")[0]
        }
        now = {"routes": weights, "endpoints": self._endpoints()}
        if now != self._routes[-1][1]:
            self._routes.append((time.monotonic(), now))

    def _endpoints(self) -> dict[str, list[tuple[str, int]]]:
        """Return who answers for each Service: those that are ready, else those that are ending."""
        endpoints = {}
        pods = [pod for pod in self.pods() if is_ready(pod)]
        for service in self.store.list("", "services")[0]:
            selector = service["spec"].get("selector") or {}
            chosen = [pod for pod in pods if selector and _matches(selector, pod)]
            staying = [pod for pod in chosen if not is_ending(pod)] or chosen
            port = service["spec"]["ports"][0].get("targetPort", 80)
            endpoints[service["metadata"]["name"]] = [
                (pod["status"]["podIP"], _port(pod, port)) for pod in staying
            ]
        return endpoints

    def _may_disrupt(self, spec: Mapping[str, Any], labels: Object, namespace: str) -> bool:
        pods = [p for p in self.store.list("", "pods", namespace)[0] if _matches(labels, p)]
        healthy = sum(is_ready(pod) and not is_ending(pod) for pod in pods)
        expected = sum(not is_ending(pod) for pod in pods)
        if "minAvailable" in spec:
            return healthy > count_of(spec["minAvailable"], expected, up=True)
        return healthy > expected - count_of(spec["maxUnavailable"], expected, up=True)

    def _as_of(self, moment: float) -> Mapping[str, Any]:
        known = [routes for since, routes in list(self._routes) if since <= moment]
        return known[-1] if known else {}

    def _uid(self, key: Key) -> str:
        uid: str = self.store.get(key)["metadata"]["uid"]
        return uid

    def create(
        self, api: str, kind: str, resource: str, namespace: str, name: str, fields: Object
    ) -> None:
        """Add an object of the core, as a controller does. Raises Refused, 409."""
        metadata = {**fields.get("metadata", {}), "name": name}
        document = {"apiVersion": api, "kind": kind, **fields, "metadata": metadata}
        self.store.create(Key("", resource, namespace, name), document, "controller")


def _matches(labels: Mapping[str, str], pod: Object) -> bool:
    return bool(labels.items() <= pod["metadata"].get("labels", {}).items())


def _port(pod: Object, name: str | int) -> int:
    """Return a container's port by its name or number; empty: its first."""
    ports = pod["spec"]["containers"][0].get("ports", [])
    if str(name).isdigit():
        return int(name)
    named = (port["containerPort"] for port in ports if name in ("", port.get("name")))
    return int(next(named))


def _precise(seconds: float) -> str:
    whole = timestamp(seconds).removesuffix("Z")
    return f"{whole}.{int(seconds % 1 * 1e9):09d}Z"
