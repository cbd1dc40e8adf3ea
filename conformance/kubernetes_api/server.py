"""The HTTP side of the stand-in: what an API server answers, by the documented API conventions."""

import contextlib
import functools
import http.client
import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from weighbridge.conformance.kubernetes_api.store import Key, Object, Refused

if TYPE_CHECKING:
    from weighbridge.conformance.kubernetes_api.cluster import Cluster

_APPLY: Final = ("application/apply-patch+yaml", "application/apply-patch+cbor")
_MERGE: Final = ("application/merge-patch+json", "application/strategic-merge-patch+json")
"""The second is no more than the first here: its lists are replaced."""
_RESOURCES: Final = {
    ("", "configmaps"),
    ("", "events"),
    ("", "namespaces"),
    ("", "nodes"),
    ("", "pods"),
    ("", "secrets"),
    ("", "services"),
    ("", "serviceaccounts"),
    ("apps", "deployments"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("coordination.k8s.io", "leases"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
}
_GATEWAY_RESOURCES: Final = {
    ("gateway.networking.k8s.io", "gateways"),
    ("gateway.networking.k8s.io", "gatewayclasses"),
    ("gateway.networking.k8s.io", "httproutes"),
}
"""There only where somebody has installed them."""
_NOT_PASSED_ON: Final = {"authorization", "connection", "content-length", "host"}
_OF_EVERYBODY: Final = "selfsubjectaccessreviews"
_USER: Final = "system:serviceaccount:stand-in:deployer"


class _Place(NamedTuple):
    group: str
    namespace: str
    resource: str
    name: str
    subresource: str
    rest: str

    @property
    def key(self) -> Key:
        return Key(self.group, self.resource, self.namespace, self.name)


class _NoSuchGroup(Exception):
    """Nobody answers for the group: no Status comes back, but a page."""


class ApiServer(ThreadingHTTPServer):
    """Answers for a cluster at a port of this machine."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take note of a connection, which lasts for many requests."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is over."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def close(self) -> None:
        """Answer nobody any more."""
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets, and the second would wait for the first one's receipt.
    disable_nagle_algorithm = True
    server: ApiServer

    def log_message(self, *args: Any) -> None:
        """Write nothing to stderr."""

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def do_PUT(self) -> None:
        self._serve(self._put)

    def do_PATCH(self) -> None:
        self._serve(self._patch)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    # One method per verb

    def _get(self, place: _Place) -> None:
        cluster, store = self.server.cluster, self.server.cluster.store
        if place.subresource == "proxy":
            self._permit("get", place)
            self._proxy(place)
        elif place.subresource == "log":
            self._permit("get", place)
            self._send_text(cluster.log_of(place.key, self._query))
        elif place.name:
            self._permit("get", place)
            self._send(200, store.get(place.key))
        elif self._query.get("watch") in ("1", "true"):
            self._permit("watch", place)
            self._watch(place)
        else:
            self._permit("list", place)
            items, version = store.list(
                place.group, place.resource, place.namespace, self._query.get("labelSelector", "")
            )
            metadata = {"resourceVersion": str(version)}
            head = {"kind": "List", "apiVersion": "v1", "metadata": metadata}
            self._send(200, {**head, "items": items})

    def _post(self, place: _Place) -> None:
        cluster, document = self.server.cluster, self._document()
        if place.resource == _OF_EVERYBODY:
            wanted = document["spec"].get("resourceAttributes", {})
            self._send(201, {**document, "status": {"allowed": cluster.may(wanted)}})
            return
        self._permit("create", place)
        if place.subresource == "proxy":
            self._proxy(place)
        elif place.subresource == "eviction":
            cluster.evict(place.key)
            self._send(201, {"kind": "Status", "status": "Success"})
        else:
            name = document.get("metadata", {}).get("name", "")
            self._need_namespace(place)
            key = place.key._replace(name=name)
            self._send(201, cluster.store.create(key, document, self._manager))

    def _put(self, place: _Place) -> None:
        self._permit("update", place)
        store = self.server.cluster.store
        self._send(200, store.replace(place.key, self._document(), self._manager))

    def _patch(self, place: _Place) -> None:
        self._permit("patch", place)
        store, kind = self.server.cluster.store, self.headers.get("Content-Type", "")
        document = self._document()
        if kind in _APPLY:
            if "fieldManager" not in self._query:
                raise Refused(400, "BadRequest", "fieldManager is required for apply patch")
            if store.find(place.key) is None:
                self._permit("create", place)
                self._need_namespace(place)
            self._check_head(place, document)
            if self._query.get("dryRun") == "All":
                self._send(200, document)
                return
            force = self._query.get("force") == "true"
            new, is_new = store.apply(place.key, document, self._manager, force=force)
            self._send(201 if is_new else 200, new)
        elif kind in _MERGE:
            change = functools.partial(_merge, patch=document)
            self._send(200, store.change(place.key, change, self._manager))
        else:
            message = f"the body of the request was in an unknown format: {kind}"
            raise Refused(415, "UnsupportedMediaType", message)

    def _delete(self, place: _Place) -> None:
        options = self._document() or {}
        if not place.name:
            self._permit("deletecollection", place)
            message = "the stand-in deletes no collections"
            raise Refused(405, "MethodNotAllowed", message)
        self._permit("delete", place)
        grace = options.get("gracePeriodSeconds")
        preconditions = options.get("preconditions") or {}
        self._send(200, self.server.cluster.store.delete(place.key, preconditions, grace))

    # Parts of the above

    def _serve(self, verb: Any) -> None:
        parts = urlsplit(self.path)
        self._query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.cluster.asked.append((self.command, parts.path))
        try:
            self._authenticate()
            self.server.cluster.fail_if_told(self.command, parts.path)
            verb(self._place(parts.path))
        except Refused as refused:
            self._send(refused.code, refused.status())
        except _NoSuchGroup:
            self._write(404, b"404 page not found\n", "text/plain; charset=utf-8")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        # As an API server does with a fault of its own.
        except Exception as exc:
            fault = Refused(500, "InternalError", f"Internal error occurred: {exc!r}")
            self._send(fault.code, fault.status())

    @property
    def _manager(self) -> str:
        agent = self.headers.get("User-Agent", "").partition("/")[0]
        return self._query.get("fieldManager") or agent or "unknown"

    def _place(self, path: str) -> _Place:
        names = path.strip("/").split("/")
        root, names = (names[:2], names[2:]) if names[0] == "api" else (names[:3], names[3:])
        group = "" if root[0] == "api" else root[1]
        namespace = ""
        if names and names[0] == "namespaces" and len(names) > 2:
            namespace, names = names[1], names[2:]
        resource, name, subresource, *rest = [*names, "", "", ""][: max(len(names), 3)]
        known = _RESOURCES | (_GATEWAY_RESOURCES if self.server.cluster.gateway_api else set())
        if group not in {there for there, _ in known}:
            raise _NoSuchGroup
        if (group, resource) not in known:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return _Place(group, namespace, resource, name, subresource, "/".join(filter(None, rest)))

    def _authenticate(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.server.cluster.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")

    def _permit(self, verb: str, place: _Place) -> None:
        resource = "/".join(filter(None, (place.resource, place.subresource)))
        attributes = {
            "verb": verb,
            "group": place.group,
            "resource": place.resource,
            "subresource": place.subresource,
            "namespace": place.namespace,
            "name": place.name.removeprefix("http:").partition(":")[0],
        }
        if self.server.cluster.may(attributes):
            return
        qualified = f"{resource}.{place.group}" if place.group else resource
        name = f' "{place.name}"' if place.name else ""
        where = (
            f'in the namespace "{place.namespace}"' if place.namespace else "at the cluster scope"
        )
        message = (
            f'{qualified}{name} is forbidden: User "{_USER}" cannot {verb} resource "{resource}" '
            f'in API group "{place.group}" {where}'
        )
        raise Refused(403, "Forbidden", message, kind=place.resource, group=place.group)

    def _need_namespace(self, place: _Place) -> None:
        if place.namespace:
            self.server.cluster.store.get(Key("", "namespaces", "", place.namespace))

    def _check_head(self, place: _Place, document: Object) -> None:
        metadata = document.get("metadata", {})
        for name, wanted in (("name", place.name), ("namespace", place.namespace)):
            if metadata.get(name, wanted) != wanted:
                message = f"the {name} of the object does not match the one in the URL"
                raise Refused(400, "BadRequest", message)
        if metadata.get("managedFields"):
            raise Refused(400, "BadRequest", "metadata.managedFields must be nil")

    def _document(self) -> Any:
        if not self._body:
            return None
        try:
            return json.loads(self._body)
        except ValueError as exc:
            raise Refused(400, "BadRequest", f"the body is no JSON: {exc}") from exc

    def _watch(self, place: _Place) -> None:
        seconds = float(self._query.get("timeoutSeconds", "60"))
        version = int(self._query.get("resourceVersion") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        selector = self._query.get("labelSelector", "")
        store = self.server.cluster.store
        try:
            for event in store.watch(
                place.group, place.resource, place.namespace, selector, version, seconds
            ):
                self._chunk(json.dumps(event).encode() + b"\n")
        except Refused as refused:
            self._chunk(json.dumps({"type": "ERROR", "object": refused.status()}).encode() + b"\n")
        self._chunk(b"")

    def _proxy(self, place: _Place) -> None:
        """Pass a request on to a pod, or to any pod of a Service that is ready."""
        host, port = self.server.cluster.behind(place.key)
        connection = http.client.HTTPConnection(host, port, timeout=60)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in _NOT_PASSED_ON}
        try:
            query = urlsplit(self.path).query
            path = f"/{place.rest}?{query}" if query else f"/{place.rest}"
            connection.request(self.command, path, self._body or None, headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while piece := answer.read1():
                self._chunk(piece)
            self._chunk(b"")
        except OSError as exc:
            message = f"error trying to reach service: {exc}"
            raise Refused(503, "ServiceUnavailable", message) from exc
        finally:
            connection.close()

    def _send(self, status: int, document: Object) -> None:
        self._write(status, json.dumps(document).encode(), "application/json")

    def _send_text(self, text: str) -> None:
        self._write(200, text.encode(), "text/plain")

    def _write(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()


def allows(rules: list[Mapping[str, Any]], wanted: Mapping[str, str]) -> bool:
    """Whether the rules of a Role allow what somebody wants to do."""
    resource = "/".join(filter(None, (wanted.get("resource"), wanted.get("subresource"))))
    return any(
        _one_of(rule.get("apiGroups", []), wanted.get("group", ""))
        and _one_of(rule.get("resources", []), resource)
        and _one_of(rule.get("verbs", []), wanted.get("verb", ""))
        and (not rule.get("resourceNames") or wanted.get("name") in rule["resourceNames"])
        for rule in rules
    )


def _one_of(allowed: list[str], wanted: str) -> bool:
    return "*" in allowed or wanted in allowed


def _merge(live: Object, patch: Object) -> None:
    """Change a document by a JSON merge patch (RFC 7386)."""
    for name, value in patch.items():
        if value is None:
            live.pop(name, None)
        elif isinstance(value, dict) and isinstance(live.get(name), dict):
            _merge(live[name], value)
        else:
            live[name] = value


def serve(cluster: "Cluster") -> ApiServer:
    """Start to answer for a cluster."""
    server = ApiServer(cluster)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
