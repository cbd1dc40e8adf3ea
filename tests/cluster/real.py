"""A real cluster to run the same tests in.

`KUBECONFIG` names it, and `WEIGHBRIDGE_TEST_TARGET` what its nodes can serve, as JSON: arguments of
the target, with the image of a Bento of ours in versions 1, 2 and 3, and whatever else the cluster
wants::

    {"namespace": "weighbridge-test", "image": "registry.example/demo:{version}",
     "pull_policy": "Never", "gateway": {"name": "edge", "hostname": "demo.test", "tls": false}}

The account must be allowed what the target's Role says, and to drain nodes.
"""

import contextlib
import http.client
import json
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from weighbridge.core.errors import Unavailable
from weighbridge.serving.targets.kubernetes import api, names

TARGET = "WEIGHBRIDGE_TEST_TARGET"
KUBECONFIG = os.environ.get("KUBECONFIG", "")
"""Before a test sets it to the stand-in's."""


def why_not() -> str:
    """Why no real cluster is used; empty: one is."""
    if not KUBECONFIG:
        return "KUBECONFIG names no cluster"
    return "" if os.environ.get(TARGET) else f"{TARGET} does not say what the cluster can serve"


def target_args() -> dict[str, Any]:
    """The arguments that the cluster wants."""
    args: dict[str, Any] = json.loads(os.environ[TARGET])
    return args


class RealCluster:
    """What tests do with a cluster, through its API."""

    def __init__(self) -> None:
        # One of its own: that of a process which a test kills does nothing any more.
        self.api = api._connected.__wrapped__("", KUBECONFIG)
        self.namespace = target_args().get("namespace", "default")
        self.gateway: dict[str, Any] | None = None
        """That clients go through; None: to the Service."""

    def pods(self) -> list[dict[str, Any]]:
        """The target's pods, those that are ending as well."""
        return self.api.find_all("Pod", self.namespace, names.target_selector("shop"))

    def drain(self, node: str) -> None:
        """Cordon a node, evict the target's pods from it, and wait until they are gone."""
        from kubernetes import client

        core = client.CoreV1Api(self.api._client)
        core.patch_node(node, {"spec": {"unschedulable": True}})
        try:
            while on_node := [pod for pod in self.pods() if pod["spec"].get("nodeName") == node]:
                for pod in on_node:
                    name = pod["metadata"]["name"]
                    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=name))
                    with contextlib.suppress(client.ApiException):  # the budget says: not yet
                        core.create_namespaced_pod_eviction(name, self.namespace, eviction)
                time.sleep(1)
        finally:
            core.patch_node(node, {"spec": {"unschedulable": False}})

    def any_gateway(self) -> dict[str, Any]:
        """The gateway that the arguments name."""
        gateway: dict[str, Any] | None = target_args().get("gateway")
        if not gateway:
            pytest.skip(f"{TARGET} names no gateway")
        return gateway

    def lose_lease(self) -> None:
        """Have the lock be free, as it is once the lease of a dead process is over."""
        self.api.delete("Lease", self.namespace, "shop-records")

    def stream(self, body: bytes) -> tuple[str, int, bytes]:
        """Ask the address for a stream; return who answered, the status and the whole answer."""
        if self.gateway:
            return self._through(self.gateway, body)
        where = f"{api.path('Service', self.namespace, 'shop:http')}/proxy/v1/chat/completions"
        headers = {"Content-Type": "application/json"}
        response = self.api.open("POST", where, body, headers, 600.0)
        with contextlib.closing(response):
            revision = response.headers.get("X-Weighbridge-Version", "")
            return revision, response.status, response.read()

    def _through(self, gateway: dict[str, Any], body: bytes) -> tuple[str, int, bytes]:
        space = gateway.get("namespace") or self.namespace
        found = self.api.get("Gateway", space, gateway["name"])
        address = urlsplit(f"//{found['status']['addresses'][0]['value']}")
        port = found["spec"]["listeners"][0]["port"]
        connection = http.client.HTTPConnection(str(address.hostname), port, timeout=600)
        headers = {"Content-Type": "application/json", "Host": gateway["hostname"]}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", body, headers)
            response = connection.getresponse()
            revision = response.headers.get("X-Weighbridge-Version", "")
            return revision, response.status, response.read()

    def clear(self) -> None:
        """Take away all that the target has made."""
        labels = names.target_selector("shop")
        for kind in (
            *("Deployment", "HTTPRoute", "Service", "PodDisruptionBudget", "NetworkPolicy"),
            *("ConfigMap", "Lease"),
        ):
            with contextlib.suppress(Unavailable):
                for one in self.api.find_all(kind, self.namespace, labels):
                    self.api.delete(kind, self.namespace, one["metadata"]["name"])
        self.api.wait_until_gone("Pod", self.namespace, labels, 600)


@contextlib.contextmanager
def real_cluster() -> Iterator[RealCluster]:
    """The cluster, without anything of ours before and after."""
    cluster = RealCluster()
    cluster.clear()
    try:
        yield cluster
    finally:
        cluster.clear()
