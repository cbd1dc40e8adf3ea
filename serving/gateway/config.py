"""haproxy's configuration as text, from the desired state of each target.

Nothing here touches haproxy.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from weighbridge.core.errors import BadInput
from weighbridge.serving.gateway.models import Front, Route

CHECK = "check inter 1s fastinter 250ms downinter 500ms fall 3 rise 1"
"""Of a server. A dead engine refuses at once; a busy one has `timeout check` to answer."""
HARD_STOP = "1h"
"""After this a worker that was replaced ends, and whatever it still answers with it."""
RETRY_AFTER = 5
"""Seconds that a client is told to wait."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED = {"weighbridge-metrics", "weighbridge"}
"""Names of sections of our own."""

# json(utf8s): a client may send any bytes, and this leaves out those that are no text.
_LOG = (
    '{"target":"%f","server":"%s","status":%ST,"first_byte_ms":%Tr,"ms":%Ta,'
    '"ended":%[date(0,ms)],"cut":"%ts","type":"%[var(txn.type),json(utf8s)]",'
    '"pinned":%[var(txn.pinned)],"id":"%[var(txn.id),bytes(0,128),json(utf8s)]",'
    '"method":"%[var(txn.method),json(utf8s)]","path":"%[var(txn.path),bytes(0,256),json(utf8s)]",'
    '"bytes":%B,"queue_ms":%Tw,"retries":"%rc"}'
)
"""A line of the access log, with haproxy's names for the values; AccessLog reads it."""


def error(message: str, kind: str, code: str = "null") -> str:
    """Return a body in the form of OpenAI's errors."""
    quoted = code if code == "null" else f'"{code}"'
    return f'{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":{quoted}}}}}'


_BUSY = error("Every place is taken: try again later.", "server_error", "overloaded")
_UNAVAILABLE = error(
    "No version answers right now: try again later.", "server_error", "unavailable"
)
_BAD_GATEWAY = error("The version that was asked broke off.", "server_error", "bad_gateway")
_GATEWAY_TIMEOUT = error(
    "The version that was asked did not answer in time.", "server_error", "timeout"
)
_REQUEST_TIMEOUT = error("The request did not come in time.", "invalid_request_error", "timeout")
_BAD_REQUEST = error("This is not an HTTP request.", "invalid_request_error", "bad_request")
_NO_KEY = error(
    "A valid API key is needed: Authorization: Bearer KEY.",
    "invalid_request_error",
    "invalid_api_key",
)
_NO_PIN = error(
    "The version in X-Weighbridge-Version is not served here.",
    "invalid_request_error",
    "model_not_found",
)


@dataclass(frozen=True)
class GlobalSettings:
    """What does not depend on the targets."""

    metrics_port: int
    peers: Path
    """Socket at which a worker hands its successor the table of conversations."""
    connections: int
    """Most at a time, clients' and engines' together."""
    threads: int


class MapFile(NamedTuple):
    """A haproxy map: a file beside the configuration that can be changed at run time."""

    file: str
    entries: dict[str, str]


def render(fronts: Sequence[Front], settings: GlobalSettings) -> str:
    """Return the whole file. Paths of maps and keys in it are relative to its folder.

    Raises:
        BadInput: names haproxy cannot have, or two targets at one address.
    """
    _check(fronts)
    parts = [_defaults(settings), _metrics(settings)]
    parts += [_frontend(front) + _backend(front) for front in fronts]
    text = "\n".join(parts)
    return _global(settings, digest(text, fronts)) + text


def digest(text: str, fronts: Sequence[Front]) -> str:
    """Return what changes exactly when a reload is needed: not with the servers, which are changed
    at run time.
    """
    hashed = hashlib.sha256()
    for line in text.splitlines():
        if not line.startswith("  server "):
            hashed.update(line.encode() + b"\n")
    for front in fronts:
        for name in (front.args.api_keys, front.args.tls):
            hashed.update(contents(front, name) if name else b"-")
    return hashed.hexdigest()[:16]


def contents(front: Front, name: str) -> bytes:
    """Return the content of a file that a target's arguments name.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as exc:
        raise BadInput(
            f"configuring the gateway of {front.target}", f"{name}: {exc.strerror}"
        ) from exc


def keys(front: Front, own: str) -> str:
    """Return a file of the digests of every key that opens a target, `own` among them.

    Raises:
        BadInput: the user's file holds something else than digests, perhaps a key itself.
    """
    lines = contents(front, front.args.api_keys).decode(errors="replace").split("\n")
    digests = [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]
    for number, key_digest in enumerate(digests, 1):
        if not re.fullmatch(r"[0-9a-f]{64}", key_digest):
            wrong = f"entry {number} of {front.args.api_keys} is not the sha256 of a key in hex"
            remedy = "printf %s KEY | sha256sum"
            raise BadInput(f"configuring the gateway of {front.target}", wrong, remedy)
    return "".join(f"{line}\n" for line in [*digests, own])


def maps(front: Front) -> tuple[MapFile, MapFile]:
    """Return at which path each version says that it is well, and which versions may be pinned."""
    health = {route.name: route.health for route in front.routes}
    pins = {route.name: "1" for route in front.routes if not route.draining}
    return MapFile(f"{front.target}.health", health), MapFile(f"{front.target}.pins", pins)


def address(host: str, port: int) -> str:
    """Return an address as haproxy writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check(fronts: Sequence[Front]) -> None:
    doing = "configuring the gateway"
    for front in fronts:
        names = [route.name for route in front.routes]
        for name in (front.target, *names):
            if not NAME.fullmatch(name) or name in RESERVED:
                raise BadInput(
                    doing,
                    f"{name!r} cannot be a name there",
                    "use letters, digits, dots and dashes",
                )
        if len(set(names)) < len(names):
            raise BadInput(doing, f"{front.target} has two versions of one name")
        if any(not re.fullmatch(r"/[^\s\"'\\]*", route.health) for route in front.routes):
            raise BadInput(doing, f"a health path of {front.target} is not a path")
    ports = [front.port for front in fronts]
    for front in fronts:
        if ports.count(front.port) > 1:
            raise BadInput(
                f"{doing} of {front.target}",
                f"port {front.port} is another target's",
                "choose another",
            )


def _global(settings: GlobalSettings, name: str) -> str:
    # len: haproxy cuts a line of the log that is longer, and half of one is no JSON.
    return f"""\
# Written by Weighbridge: changes made here are lost.
global
  description {name}
  localpeer local
  log stdout len 8192 format raw local0
  maxconn {settings.connections}
  nbthread {settings.threads}
  hard-stop-after {HARD_STOP}
  ssl-default-bind-options ssl-min-ver TLSv1.2

"""


def _defaults(settings: GlobalSettings) -> str:
    errors = {
        400: _BAD_REQUEST,
        408: _REQUEST_TIMEOUT,
        500: _BAD_GATEWAY,
        502: _BAD_GATEWAY,
        503: _UNAVAILABLE,
        504: _GATEWAY_TIMEOUT,
    }
    pages = "".join(
        f"  http-error status {status} content-type application/json string '{body}'"
        f"{f' hdr Retry-After {RETRY_AFTER}' if status == 503 else ''}\n"
        for status, body in errors.items()
    )
    # - redispatch: what cannot connect to one version is tried on another; what was sent to one is
    #   never sent again.
    # - timeouts of a day: an answer may take hours; engines and clients have limits of their own.
    # - http-server-close: a connection to an engine serves one request, so that none is ever sent
    #   down one that the engine is closing.
    # - idle-close-on-response: a connection that idles through a reload serves one more request.
    return f"""\
peers weighbridge
  bind unix@{_quoted(settings.peers)} mode 600
  server local

defaults
  mode http
  log global
  option dontlognull
  option http-ignore-probes
  option http-server-close
  option idle-close-on-response
  option http-no-delay
  option abortonclose
  option redispatch 1
  retries 3
  timeout connect 2s
  timeout check 10s
  timeout http-request 60s
  timeout http-keep-alive 75s
  timeout client 1d
  timeout server 1d
  timeout tunnel 1d
{pages}"""


def _metrics(settings: GlobalSettings) -> str:
    return f"""\
frontend weighbridge-metrics
  bind 127.0.0.1:{settings.metrics_port}
  no log
  http-request use-service prometheus-exporter if {{ path /metrics }}
  http-request return status 404 content-type text/plain string /metrics
"""


def _frontend(front: Front) -> str:
    args, pinned = front.args, "{ var(txn.pin) -m len gt 0 }"
    tls = (
        f" ssl crt {_quoted(Path(args.tls).expanduser().absolute())} alpn h2,http/1.1"
        if args.tls
        else ""
    )
    v6 = " v6only" if front.host == "::1" else ""
    # Whatever the log tells of a request is kept in variables: it is gone when the answer ends.
    lines = [
        f"frontend {front.target}",
        f"  bind {address(front.host, front.port)}{v6}{tls}",
        f"  log-format '{_LOG}'",
        "  http-request set-var(txn.method) method",
        "  http-request set-var(txn.path) path",
        "  http-request set-var(txn.pinned) bool(false)",
        "  http-request set-header X-Request-ID %[uuid()]"
        " unless { req.hdr(X-Request-ID) -m len gt 0 }",
        "  http-request set-var(txn.id) req.fhdr(X-Request-ID)",
        "  http-after-response set-header X-Request-ID %[var(txn.id)] if { var(txn.id) -m found }",
        "  http-request set-var(txn.pin) req.fhdr(X-Weighbridge-Version)",
        f"  http-request set-var(txn.pinned) bool(true) if {pinned}",
    ]
    if args.api_keys:
        # haproxy writes hex in capitals, sha256sum does not.
        has_key = f"{{ http_auth_bearer,sha2(256),hex,lower -m str -f {front.target}.keys }}"
        # The engine must not see, nor log, a client's key.
        lines += [
            f"  http-request {_refusal(401, _NO_KEY, 'WWW-Authenticate Bearer')} unless {has_key}",
            "  http-request del-header Authorization",
        ]
    pin_is_served = f"{{ var(txn.pin),map({front.target}.pins) -m found }}"
    lines.append(f"  http-request {_refusal(404, _NO_PIN)} if {pinned} !{pin_is_served}")
    if args.queue:
        refusal = _refusal(503, _BUSY, f"Retry-After {RETRY_AFTER}")
        lines.append(f"  http-request {refusal} if {{ queue({front.target}) ge {args.queue} }}")
    return "\n".join([*lines, f"  default_backend {front.target}\n"])


def _refusal(status: int, body: str, header: str | None = None) -> str:
    header = f" hdr {header}" if header else ""
    return f"return status {status} content-type application/json string '{body}'{header}"


def _backend(front: Front) -> str:
    # random(1): each request is an independent draw by weight, so that what two versions are given
    # can be compared. force-persist: a pinned version that is down is an error, never another
    # version's answer.
    wait = max(1, round(front.args.queue_seconds * 1000)) if front.args.queue else 1
    health = f"map({front.target}.health,/health)"
    lines = [
        f"\nbackend {front.target}",
        "  balance random(1)",
        f"  timeout queue {wait}ms",
        "  option httpchk",
        f"  http-check send meth GET uri-lf %[srv_name,{health}] ver HTTP/1.1 hdr Host localhost",
        "  http-check expect status 200",
        "  stick-table type string len 128 size 100k expire 2h peers weighbridge",
        "  force-persist if { var(txn.pinned) -m bool }",
        "  http-request del-header X-Weighbridge-Version",
        "  use-server %[var(txn.pin)] if { var(txn.pinned) -m bool }",
        "  stick on req.fhdr(X-Weighbridge-Session) unless { var(txn.pinned) -m bool }",
        "  http-response set-var(txn.type) res.fhdr(Content-Type)",
        "  http-response set-header X-Weighbridge-Version %[srv_name]",
        *(f"  {_server(route, front)}" for route in front.routes),
    ]
    return "\n".join(lines) + "\n"


def _server(route: Route, front: Front) -> str:
    disabled = " disabled" if route.draining else ""
    return f"server {route.name} {options(route, front)}{disabled}"


def options(route: Route, front: Front) -> str:
    """Return a server's options, in the file and at run time alike."""
    limits = f"weight {route.weight} maxconn {front.args.in_flight}"
    return f"{address(route.host, route.port)} {limits} {CHECK}"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"
