"""A cluster's API through Kubernetes' own client, and its refusals as errors of ours.

Objects are plain dictionaries, as the API has them: manifests go in as they were rendered, and a
further kind (an overlay's, a gateway's) needs no class of its own.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.serving.targets.kubernetes import http2, names
from weighbridge.serving.targets.kubernetes.refusals import NoAnswer, NotFound, refusal_of

Object = dict[str, Any]

RESOURCES: Final = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Gateway": "gateways",
    "GatewayClass": "gatewayclasses",
    "HTTPRoute": "httproutes",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "Lease": "leases",
    "Namespace": "namespaces",
    "NetworkPolicy": "networkpolicies",
    "Node": "nodes",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "ScaledObject": "scaledobjects",
    "SelfSubjectAccessReview": "selfsubjectaccessreviews",
    "Service": "services",
}
"""What the API calls the objects of a kind."""
API_VERSIONS: Final = {
    "Deployment": "apps/v1",
    "Gateway": "gateway.networking.k8s.io/v1",
    "GatewayClass": "gateway.networking.k8s.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "Lease": "coordination.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "SelfSubjectAccessReview": "authorization.k8s.io/v1",
}
"""Of those kinds that are not of the core (`v1`)."""

INSTALL: Final = "pip install 'weighbridge[kubernetes]'"
TIMEOUT: Final = (5.0, 30.0)
"""Seconds to connect, and between two pieces of an answer."""
TRIES: Final = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between tries of what may be done twice, while the API server is restarted or busy."""
_APPLY: Final = "application/apply-patch+yaml"
_JSON: Final = "application/json"


class Api:
    """One cluster, as whoever a kubeconfig names. Safe for several threads."""

    def __init__(self, client: Any, *, is_ours: bool = False) -> None:
        self._client = client
        self.is_ours = is_ours
        """Whether this process runs in that cluster, where pods can be reached at their addresses.
        """
        self.is_refused = False
        """Whether its credentials have been, since it was connected."""

    def go_on_as(self, other: "Api") -> None:
        """Ask as whoever another one is; what is kept for this one stays good."""
        self._client, self.is_ours, self.is_refused = other._client, other.is_ours, False

    @property
    def url(self) -> str:
        """Where the API server is; also what tells clusters apart."""
        return str(self._client.configuration.host)

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """Return an object. Raises NotFound, Unavailable."""
        doing = f"reading {kind} {name}"
        answer: Object = self._ask("GET", path(kind, namespace, name), doing)
        return answer

    def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return an object; None where there is none. Raises Unavailable."""
        try:
            return self.get(kind, namespace, name)
        except NotFound as exc:
            if exc.is_of_kind:
                raise
            return None

    def find_all(
        self, kind: str, namespace: str = "", labels: Mapping[str, str] | None = None
    ) -> list[Object]:
        """Return the objects with these labels. Raises Unavailable."""
        return self._listed(kind, namespace, labels)[0]

    def apply(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Have an object be as a manifest says, by server-side apply as our field manager.

        Fields that we said something of before and say nothing of now go; fields of others stay.

        Args:
            manifest: with `apiVersion`, `kind` and name.
            dry_run: whether the API server is only asked what it would do.

        Raises:
            Unavailable: it is refused, or the server does not answer.
        """
        kind, metadata = manifest["kind"], manifest["metadata"]
        query = {"fieldManager": names.MANAGER, "force": "true"}
        query |= {"dryRun": "All"} if dry_run else {}
        where = path(kind, metadata.get("namespace", ""), metadata["name"], manifest["apiVersion"])
        doing = f"applying {kind} {metadata['name']}"
        answer: Object = self._ask("PATCH", where, doing, query, manifest, _APPLY)
        return answer

    def create(self, manifest: Object) -> Object:
        """Add an object. Raises Conflict where there is one, Unavailable."""
        kind, metadata = manifest["kind"], manifest["metadata"]
        where = path(kind, metadata.get("namespace", ""), "", manifest["apiVersion"])
        query = {"fieldManager": names.MANAGER}
        doing = f"creating {kind} {metadata.get('name', '')}".rstrip()
        answer: Object = self._ask("POST", where, doing, query, manifest, once=True)
        return answer

    def replace(self, manifest: Object) -> Object:
        """Put another object in the place of one, of the `resourceVersion` that it names.

        Raises:
            Conflict: it was changed since.
            NotFound: it is gone.
            Unavailable: as above; it may have been done all the same.
        """
        kind, metadata = manifest["kind"], manifest["metadata"]
        where = path(kind, metadata["namespace"], metadata["name"], manifest["apiVersion"])
        query = {"fieldManager": names.MANAGER}
        doing = f"writing {kind} {metadata['name']}"
        answer: Object = self._ask("PUT", where, doing, query, manifest, once=True)
        return answer

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, and in the background what belongs to it; none there is none to delete.

        Raises:
            Unavailable: it is refused, or the server does not answer.
        """
        options = {"propagationPolicy": "Background"}
        where = path(kind, namespace, name)
        try:
            self._ask("DELETE", where, f"deleting {kind} {name}", {}, options)
        except NotFound:
            return

    def wait_until_gone(
        self, kind: str, namespace: str, labels: Mapping[str, str], seconds: float
    ) -> list[Object]:
        """Wait until no object has these labels; return those that are left when time is up.

        Raises:
            Unavailable: the server does not answer.
        """
        deadline = time.monotonic() + seconds
        while True:
            left, version = self._listed(kind, namespace, labels)
            remaining = deadline - time.monotonic()
            if not left or remaining <= 0:
                return left
            uids = {one["metadata"]["uid"] for one in left}
            for event in self._watch(kind, namespace, labels, version, min(remaining, 60.0)):
                uid = event["object"].get("metadata", {}).get("uid")
                if event["type"] == "DELETED":
                    uids.discard(uid)
                # An expired version, or something new: look at all of them again.
                if event["type"] in ("ERROR", "ADDED") or not uids:
                    break
            else:
                # It ended by itself: its time is up, or it was refused, and would be again at once.
                time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def log(self, namespace: str, pod: str, container: str, **options: str) -> str:
        """Return a container's log, by the API's own parameters. Raises Unavailable."""
        where = f"{path('Pod', namespace, pod)}/log"
        query = {"container": container, **options}
        return str(self._ask("GET", where, f"reading the log of {pod}", query))

    def may(self, verb: str, group: str, resource: str, namespace: str) -> bool:
        """Whether we may do that, as the API server says. Raises Unavailable."""
        resource, _, subresource = resource.partition("/")
        attributes = {
            "verb": verb,
            "group": group,
            "resource": resource,
            "subresource": subresource,
            "namespace": namespace,
        }
        review = self.create(
            {
                "apiVersion": API_VERSIONS["SelfSubjectAccessReview"],
                "kind": "SelfSubjectAccessReview",
                "metadata": {},
                "spec": {"resourceAttributes": attributes},
            }
        )
        return bool(review.get("status", {}).get("allowed"))

    def open(
        self, method: str, where: str, body: bytes | None, headers: Mapping[str, str], timeout: Any
    ) -> Any:
        """Ask for anything at the API server, and return the response, not read yet.

        It has `status`, `headers`, `read`, `read1` and `close`; what breaks off raises urllib3's
        errors, or httpx's where a body was sent.

        Raises:
            NoAnswer: the server cannot be reached.
        """
        import httpx
        import urllib3

        _, url, own, *_ = self._serialized(method, where, {}, None, dict(headers))
        rest = self._client.rest_client
        try:
            # Through a proxy by urllib3, which knows every kind of them.
            if body is not None and type(rest.pool_manager) is urllib3.PoolManager:
                return http2.ask(method, url, body, own, timeout, rest.configuration)
            return rest.pool_manager.request(
                method, url, body=body, headers=own, preload_content=False, timeout=timeout
            )
        except (urllib3.exceptions.HTTPError, httpx.HTTPError, OSError) as exc:
            raise self._unreachable(f"asking {where}", exc) from exc

    # Parts of the above

    def _listed(
        self, kind: str, namespace: str, labels: Mapping[str, str] | None
    ) -> tuple[list[Object], str]:
        query = {"labelSelector": _selector(labels)} if labels else {}
        where = path(kind, namespace)
        answer = self._ask("GET", where, f"listing {RESOURCES[kind]}", query)
        return answer["items"], answer["metadata"].get("resourceVersion", "")

    def _watch(
        self, kind: str, namespace: str, labels: Mapping[str, str], version: str, seconds: float
    ) -> Iterator[Object]:
        import urllib3

        query = {"watch": "true", "resourceVersion": version, "labelSelector": _selector(labels)}
        query["timeoutSeconds"] = str(max(1, int(seconds)))
        where = f"{path(kind, namespace)}?{urlencode(query)}"
        timeout = urllib3.Timeout(connect=5.0, read=seconds + 5.0)
        response = self.open("GET", where, None, {}, timeout)
        try:
            if response.status >= 400:
                return
            rest = b""
            for piece in response.stream(amt=None):
                *lines, rest = (rest + piece).split(b"\n")
                yield from map(json.loads, filter(None, lines))
        # Whoever watches looks again anyway.
        except (urllib3.exceptions.HTTPError, ValueError):
            return
        finally:
            response.close()

    def _ask(
        self,
        method: str,
        where: str,
        doing: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = _JSON,
        *,
        once: bool = False,
    ) -> Any:
        """Ask, and wait for an API server that is restarted where that may be done twice."""
        for pause in () if once else TRIES:
            try:
                return self._ask_once(method, where, doing, query or {}, body, content)
            except NoAnswer:
                time.sleep(pause)
        return self._ask_once(method, where, doing, query or {}, body, content)

    def _ask_once(
        self,
        method: str,
        where: str,
        doing: str,
        query: Mapping[str, str],
        body: Object | None,
        content: str,
    ) -> Any:
        import urllib3
        from kubernetes.client import ApiException

        headers = {"Accept": "application/json, text/plain", "Content-Type": content}
        request = self._serialized(method, where, query, body, headers)
        try:
            response = self._client.call_api(*request, _request_timeout=TIMEOUT)
            data: bytes = response.read()
        except (urllib3.exceptions.HTTPError, OSError, ApiException) as exc:
            raise self._unreachable(doing, exc) from exc
        if response.status == 401:
            self.is_refused = True
        if response.status >= 400:
            raise refusal_of(doing, response.status, data)
        is_json = (response.headers.get("content-type") or "").startswith(_JSON)
        return json.loads(data) if is_json else data.decode("utf-8", "replace")

    def _serialized(
        self,
        method: str,
        where: str,
        query: Mapping[str, str],
        body: Object | None,
        headers: dict[str, str],
    ) -> Any:
        return self._client.param_serialize(
            method, where, None, list(query.items()), headers, body, auth_settings=["BearerToken"]
        )

    def _unreachable(self, doing: str, exc: Exception) -> NoAnswer:
        reason = getattr(exc, "reason", None) or exc
        return NoAnswer(
            f"{doing} at {self.url}",
            f"the cluster does not answer ({one_line(reason)})",
            "see `kubectl cluster-info`",
        )


def path(kind: str, namespace: str, name: str = "", api_version: str = "") -> str:
    """Return where the API has an object, or without a name all of a kind."""
    version = api_version or API_VERSIONS.get(kind, "v1")
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    space = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{space}/{RESOURCES[kind]}" + (f"/{name}" if name else "")


def connect(context: str = "") -> Api:
    """Return the cluster that a context of the kubeconfig names, or else that we run in.

    Without a name it is the current context of the kubeconfig, where there is one (KUBECONFIG, or
    ~/.kube/config), else the cluster of the pod that this process runs in.

    Raises:
        Unavailable: there is no cluster to be found, or Kubernetes' client is not installed.
    """
    named = context, os.environ.get("KUBECONFIG", "")
    api = _connected(*named)
    if api.is_refused:
        # Somebody may have logged in since.
        api.go_on_as(_connect(*named))
    return api


@cache
def _connected(context: str, kubeconfig: str) -> Api:
    return _connect(context, kubeconfig)


def _connect(context: str, kubeconfig: str) -> Api:
    doing = "looking for the cluster"
    try:
        from kubernetes import client, config
    except ImportError as exc:
        raise Unavailable(doing, "Kubernetes' client is not installed", INSTALL) from exc
    configuration = client.Configuration()
    # What may be done twice is repeated here, and longer.
    configuration.retries = False
    files = kubeconfig or str(Path.home() / ".kube" / "config")
    has_file = any(Path(file).expanduser().exists() for file in files.split(os.pathsep) if file)
    is_ours = not (has_file or context)
    try:
        if not is_ours:
            config.load_kube_config(files, context or None, configuration)
        elif os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(configuration)
        else:
            remedy = "set KUBECONFIG, or run where ~/.kube/config is"
            raise Unavailable(doing, "there is no kubeconfig, and this is no pod", remedy)
    except (config.ConfigException, OSError, ValueError, TypeError) as exc:
        remedy = "see `kubectl config get-contexts`"
        raise Unavailable(doing, f"the kubeconfig can't be used: {one_line(exc)}", remedy) from exc
    return Api(client.ApiClient(configuration), is_ours=is_ours)


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in labels.items())
