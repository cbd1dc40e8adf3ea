"""How this process reaches the pods of a revision: from inside the cluster at their addresses, from
outside through the API server's proxy.

Clients of ours that know nothing of clusters ask a port of this machine's loopback, behind which a
thread passes the request on to a pod that is ready. Every request says which revision is meant, so
that it is not taken for one of a client's.
"""

import http.client
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, Final

from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.core.formatting import one_line
from weighbridge.serving.request_watch import CLIENTS
from weighbridge.serving.targets.kubernetes import names, pod_states
from weighbridge.serving.targets.kubernetes.api import Api, path
from weighbridge.serving.targets.kubernetes.traffic import VERSION_HEADER

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
"""For which a list of pods is good enough."""
_LOOK_TIMEOUT: Final = 5.0
_ANSWER_TIMEOUT: Final = 3600.0
_PASSED_ON: Final = ("content-type", "accept")
_PASSED_BACK: Final = ("content-type", "x-weighbridge-version")


class Pods:
    """The pods of one revision, or of a whole target, as they were a moment ago."""

    def __init__(self, api: Api, namespace: str, labels: Mapping[str, str]) -> None:
        self._api, self._namespace, self._labels = api, namespace, dict(labels)
        self._seen: Sequence[pod_states.Pod] = ()
        self._due = 0.0
        self._lock = threading.Lock()

    def listed(self, *, anew: bool = False) -> Sequence[pod_states.Pod]:
        """Return the pods as they were a moment ago, or as they are. Raises Unavailable."""
        with self._lock:
            if anew or time.monotonic() >= self._due:
                self._seen = self._api.find_all("Pod", self._namespace, self._labels)
                self._due = time.monotonic() + _LOOK_SECONDS
            return self._seen

    def ask(
        self,
        pod: pod_states.Pod,
        method: str,
        to: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = _LOOK_TIMEOUT,
    ) -> Any:
        """Ask a pod, and return the response, not read yet, with `status` and `headers`.

        Raises:
            Unavailable: it can't be reached.
        """
        if not self._api.is_ours:
            where = path("Pod", self._namespace, f"{pod_states.name_of(pod)}:{names.HTTP_PORT}")
            return self._api.open(method, f"{where}/proxy{to}", body, headers or {}, timeout)
        address = pod.get("status", {}).get("podIP", "")
        connection = http.client.HTTPConnection(address, names.HTTP_PORT, timeout=timeout)
        try:
            # Then the connection is the response's alone, and ends with it.
            connection.request(method, to, body, {**(headers or {}), "Connection": "close"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            raise Unavailable(f"asking pod {pod_states.name_of(pod)}", str(exc)) from exc

    def why_unreached(self) -> str:
        """Return why a pod that is ready can't be reached from here; empty: it can, or none is."""
        ready = next((pod for pod in self.listed() if pod_states.is_ready(pod)), None)
        if ready is None:
            return ""
        try:
            status, said = self._read(ready, "/requests")
        except WeighbridgeError as exc:
            return f"pod {pod_states.name_of(ready)} is ready, and can't be reached: {exc}"
        if status == http.HTTPStatus.OK:
            return ""
        return (
            f"pod {pod_states.name_of(ready)} is ready, and can't be reached from here (HTTP "
            f"{status}): {one_line(said.decode('utf-8', 'replace'), 300)}; where a "
            "NetworkPolicy keeps the API server out, name its addresses in deploy.target.networks"
        )

    def document(self, pod: pod_states.Pod, to: str) -> dict[str, Any] | None:
        """Return the JSON that a pod answers with; None where it does not."""
        try:
            status, content = self._read(pod, to)
            found = json.loads(content) if status == http.HTTPStatus.OK else None
        except (WeighbridgeError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _read(self, pod: pod_states.Pod, to: str) -> tuple[int, bytes]:
        """Return the status and the whole answer of a pod. Raises Unavailable."""
        import urllib3

        response = self.ask(pod, "GET", to)
        try:
            return response.status, response.read()
        # A pod that ends breaks off its answer, which either library says in ways of its own.
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError) as exc:
            raise Unavailable(f"asking pod {pod_states.name_of(pod)}", one_line(exc)) from exc
        finally:
            response.close()


class Door:
    """A port of this machine's loopback that leads to the pods of one revision."""

    def __init__(self, pods: Pods, revision: str) -> None:
        self.pods, self.revision = pods, revision
        self._numbers = count()
        self._server = _Server(self)
        thread = threading.Thread(target=self._server.serve_forever, name=f"to {revision}")
        thread.daemon = True
        thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Take nothing more; what is under way goes on."""
        self._server.shutdown()
        self._server.server_close()

    def ask(self, method: str, to: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        """Ask one of the pods that are ready. Raises Unavailable."""
        ready = [pod for pod in self.pods.listed() if pod_states.is_ready(pod)]
        if not ready:
            raise Unavailable(f"asking revision {self.revision}", "none of its pods is ready")
        pod = ready[next(self._numbers) % len(ready)]
        sent = {**headers, VERSION_HEADER: self.revision}
        return self.pods.ask(pod, method, to, body, sent, _ANSWER_TIMEOUT)


_Revision = tuple[Api, str, str, str]
"""Whose, in which namespace, of which target, and its name."""
_PODS: dict[_Revision, Pods] = {}
_DOORS: dict[_Revision, Door] = {}
_LOCK = threading.Lock()


def pods_of(api: Api, namespace: str, target: str, revision: str) -> Pods:
    """Return the pods of a revision; whoever asks for them in this process sees one list."""
    labels = names.revision_selector(target, revision)
    with _LOCK:
        return _PODS.setdefault((api, namespace, target, revision), Pods(api, namespace, labels))


def door_to(api: Api, namespace: str, target: str, revision: str) -> Door:
    """Return the door to a revision; each has one, for as long as this process runs."""
    pods, key = pods_of(api, namespace, target, revision), (api, namespace, target, revision)
    with _LOCK:
        if key not in _DOORS:
            _DOORS[key] = Door(pods, revision)
        return _DOORS[key]


def forget(api: Api, namespace: str, target: str, revision: str) -> None:
    """Close the door to a revision that has ended, where there is one, and forget its pods."""
    key = (api, namespace, target, revision)
    with _LOCK:
        _PODS.pop(key, None)
        door = _DOORS.pop(key, None)
    if door is not None:
        door.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, door: Door) -> None:
        self.door = door
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two packets, and the second would wait for the first one's receipt.
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: Any) -> None:
        """Write nothing to stderr."""

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        if not self.path.startswith(CLIENTS):
            self._fail(404, "only what clients may ask is passed on")
            return
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        try:
            response = self.server.door.ask(self.command, self.path, body, headers)
        except WeighbridgeError as exc:
            self._fail(502, str(exc))
            return
        try:
            self._send_back(response)
        finally:
            response.close()

    def _send_back(self, response: Any) -> None:
        self.send_response(response.status)
        for name in _PASSED_BACK:
            if value := response.headers.get(name):
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while piece := response.read1(1 << 16):
                self._chunk(piece)
        # Of either library: what is not whole must not look as if it were.
        except Exception as exc:
            self.close_connection = True
            logger.debug("an answer of a pod broke off: %s", exc)
            return
        self._chunk(b"")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _fail(self, status: int, message: str) -> None:
        content = json.dumps({"error": {"message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
