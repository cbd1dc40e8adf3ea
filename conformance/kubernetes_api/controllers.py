"""Controllers of the stand-in: what makes the objects of a cluster be as they say."""

import contextlib
import copy
import functools
import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from weighbridge.conformance.kubernetes_api.nodes import LOOK, PodRun
from weighbridge.conformance.kubernetes_api.store import Key, Object, Refused

if TYPE_CHECKING:
    from weighbridge.conformance.kubernetes_api.cluster import Cluster

GATEWAY_API: Final = "gateway.networking.k8s.io"


class Controllers(threading.Thread):
    """Follows Deployments, collects garbage, takes routes and starts pods, until it is closed."""

    def __init__(self, cluster: "Cluster") -> None:
        super().__init__(name="controllers", daemon=True)
        self.cluster, self.store = cluster, cluster.store

    def run(self) -> None:
        """Look again and again."""
        while not self.cluster.closed:
            with contextlib.suppress(Refused):  # something has changed meanwhile: look again
                self._follow_deployments()
            self._collect_garbage()
            self._take_routes()
            self._run_pods()
            self.cluster.publish_routes()
            time.sleep(LOOK)

    def _follow_deployments(self) -> None:
        for deployment in self.store.list("apps", "deployments")[0]:
            metadata, spec = deployment["metadata"], deployment["spec"]
            own = [
                pod
                for pod in self.cluster.pods()
                if _owner(pod) == metadata["uid"] and not is_ending(pod)
            ]
            mark = _hash(spec["template"])
            new = [pod for pod in own if pod["metadata"]["labels"]["pod-template-hash"] == mark]
            old = [pod for pod in own if pod not in new]
            self._scale(deployment, mark, new, old)
            self._write_status(deployment, new, own)

    def _scale(self, deployment: Object, mark: str, new: list[Object], old: list[Object]) -> None:
        spec, namespace = deployment["spec"], deployment["metadata"]["namespace"]
        replicas = spec.get("replicas", 1)
        rolling = spec.get("strategy", {}).get("rollingUpdate", {})
        surge = count_of(rolling.get("maxSurge", "25%"), replicas, up=True)
        spare = count_of(rolling.get("maxUnavailable", "25%"), replicas, up=False)
        room = min(replicas - len(new), replicas + surge - len(new) - len(old))
        for _ in range(room):
            self._create_pod(deployment, mark)
        ready = sum(map(is_ready, new + old))
        going = new[replicas:] + sorted(old, key=is_ready)
        for pod in going:
            if is_ready(pod):
                if pod in old and ready <= replicas - spare:
                    return
                ready -= 1
            self.store.delete(Key("", "pods", namespace, pod["metadata"]["name"]), {}, None)

    def _create_pod(self, deployment: Object, mark: str) -> None:
        metadata, template = deployment["metadata"], copy.deepcopy(deployment["spec"]["template"])
        name = f"{metadata['name']}-{mark}-{random.randrange(16**5):05x}"
        labels = {**template["metadata"].get("labels", {}), "pod-template-hash": mark}
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "controller": True}
        owner |= {"name": metadata["name"], "uid": metadata["uid"]}
        document = {
            "metadata": {**template["metadata"], "labels": labels, "ownerReferences": [owner]},
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        self.cluster.create("v1", "Pod", "pods", metadata["namespace"], name, document)

    def _write_status(self, deployment: Object, new: list[Object], own: list[Object]) -> None:
        ready = sum(map(is_ready, own))
        wanted = deployment["spec"].get("replicas", 1)
        available = {"type": "Available", "status": "True" if ready >= wanted else "False"}
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(own),
            "updatedReplicas": len(new),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": [available],
        }
        key = Key("apps", "deployments", *_place(deployment))
        self.store.change(key, functools.partial(_put_status, status=status))

    def _collect_garbage(self) -> None:
        owners = {d["metadata"]["uid"] for d in self.store.list("apps", "deployments")[0]}
        for pod in self.cluster.pods():
            owner = _owner(pod)
            if owner and owner not in owners and not is_ending(pod):
                with contextlib.suppress(Refused):
                    self.store.delete(Key("", "pods", *_place(pod)), {}, None)

    def _take_routes(self) -> None:
        """Have gateways take the routes that name them, as their class's controller does."""
        for route in self.store.list(GATEWAY_API, "httproutes")[0]:
            generation = route["metadata"]["generation"]
            conditions = [_holds("Accepted", generation), self._resolved(route)]
            parents = [
                {"parentRef": parent, "controllerName": "stand-in", "conditions": conditions}
                for parent in route["spec"]["parentRefs"]
                if self.store.find(Key(GATEWAY_API, "gateways", *_gateway(route, parent)))
            ]
            status = {"parents": parents} if parents else {}
            key = Key(GATEWAY_API, "httproutes", *_place(route))
            with contextlib.suppress(Refused):
                self.store.change(key, functools.partial(_put_status, status=status))

    def _resolved(self, route: Object) -> Object:
        """Return whether all Services are there that a route leads to, as a condition."""
        generation, (namespace, _) = route["metadata"]["generation"], _place(route)
        backends = [ref for rule in route["spec"]["rules"] for ref in rule.get("backendRefs") or ()]
        for name in dict.fromkeys(backend["name"] for backend in backends):
            if self.store.find(Key("", "services", namespace, name)) is None:
                missing = {"reason": "BackendNotFound", "message": f"there is no Service {name}"}
                return {**_holds("ResolvedRefs", generation), "status": "False", **missing}
        return _holds("ResolvedRefs", generation)

    def _run_pods(self) -> None:
        for pod in self.cluster.pods():
            uid = pod["metadata"]["uid"]
            if uid not in self.cluster.runs:
                self.cluster.runs[uid] = PodRun(self.cluster, Key("", "pods", *_place(pod)))
                self.cluster.runs[uid].start()


def _gateway(route: Object, parent: Mapping[str, str]) -> tuple[str, str]:
    return parent.get("namespace", route["metadata"]["namespace"]), parent["name"]


def _holds(condition: str, generation: int) -> Object:
    return {"type": condition, "status": "True", "observedGeneration": generation}


def _put_status(document: Object, status: Object) -> None:
    document["status"] = status


def _place(document: Object) -> Iterator[str]:
    return iter((document["metadata"]["namespace"], document["metadata"]["name"]))


def _owner(pod: Object) -> str:
    return next((owner["uid"] for owner in pod["metadata"].get("ownerReferences", ())), "")


def _hash(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:8]


def count_of(value: str | int, replicas: int, *, up: bool) -> int:
    """Return a number of replicas, or a percentage of them, as a number."""
    if isinstance(value, str) and value.endswith("%"):
        share = replicas * int(value[:-1])
        return -(-share // 100) if up else share // 100
    return int(value)


def is_ending(pod: Object) -> bool:
    """Whether a pod is being ended."""
    return "deletionTimestamp" in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """Whether a pod answers its readiness probe."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)
