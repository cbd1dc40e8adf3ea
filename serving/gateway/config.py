"""haproxy's configuration as text, from the desired state of each target.

Nothing here touches haproxy.
"""

import hashlib
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from weighbridge.core.errors import BadInput
from weighbridge.core.field_types import is_address
from weighbridge.serving.client_requests import (
    BODY_TOO_SLOW,
    common_operations,
    is_operation,
    openai_error,
)
from weighbridge.serving.gateway.frontend import (
    ANY_MODEL,
    ANYONE,
    HEADER_BYTES,
    RETRY_AFTER,
    URL_BYTES,
    frontend,
)
from weighbridge.serving.gateway.models import HEALTH, Front, Route
from weighbridge.serving.gateway.syntax import address, json_word, milliseconds, quoted

CHECK = "check inter 1s fastinter 250ms downinter 500ms fall 3 rise 1"
"""Of a server. A dead engine refuses at once; a busy one has `timeout check` to answer."""
HARD_STOP = "1h"
"""After this a worker that was replaced ends, and whatever it still answers with it."""
BUFFER_SPARE = 4 * (URL_BYTES + HEADER_BYTES)
"""Bytes of a buffer beside the largest body: for the request's head, and haproxy's own notes."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]*")
RESERVED = {"weighbridge-metrics", "weighbridge"}
"""Names of sections of our own."""

_BROKE_OFF = openai_error("The version that was asked broke off.", "server_error", "bad_gateway")
_PAGES: Final[Mapping[int, Mapping[str, Any]]] = {
    400: openai_error("This is not an HTTP request.", "invalid_request_error", "bad_request"),
    408: BODY_TOO_SLOW,
    500: _BROKE_OFF,
    502: _BROKE_OFF,
    503: openai_error(
        "No version answers right now: try again later.", "server_error", "unavailable"
    ),
    504: openai_error(
        "The version that was asked did not answer in time.", "server_error", "timeout"
    ),
}
"""What haproxy itself answers where something fails."""


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


def render(
    fronts: Sequence[Front], settings: GlobalSettings, certificates: Mapping[str, str]
) -> str:
    """Return the whole file. Paths of maps, keys and certificates are relative to its folder.

    Args:
        fronts: every target.
        settings: what does not depend on them.
        certificates: content of the file with certificate and key, of each target that has one.

    Raises:
        BadInput: names haproxy cannot have, or two targets at one address.
    """
    _check(fronts)
    largest_body = max((front.args.max_body_bytes for front in fronts), default=0)
    parts = [_global(settings, largest_body), _defaults(settings), _metrics(settings)]
    parts += [frontend(front, settings.connections) + _backend(front) for front in fronts]
    text = "\n".join(parts)
    return _opening(digest(text, certificates)) + text


def digest(text: str, certificates: Mapping[str, str]) -> str:
    """Return what changes exactly when a reload is needed: not with the servers, which are changed
    at run time.
    """
    hashed = hashlib.sha256()
    for line in text.splitlines():
        if not line.startswith("  server "):
            hashed.update(line.encode() + b"\n")
    for target, certificate in sorted(certificates.items()):
        hashed.update(f"{target}\n{certificate}\n".encode())
    return hashed.hexdigest()[:16]


def contents(front: Front, name: str) -> str:
    """Return the content of a file that a target's arguments name.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return Path(name).read_text(errors="replace")
    except OSError as exc:
        raise BadInput(
            f"configuring the gateway of {front.target}", f"{name}: {exc.strerror}"
        ) from exc


def keys(front: Front, own: str) -> str:
    """Return a file of the digests of every key that opens a target, `own` among them.

    Raises:
        BadInput: the user's file can't be read, or holds something else than digests, perhaps a key
            itself.
    """
    if not front.args.api_keys:
        return f"{ANYONE}\n"
    lines = contents(front, front.args.api_keys).split("\n")
    digests = [line.strip().lower() for line in lines if line.strip() and not line.startswith("#")]
    for number, key_digest in enumerate(digests, 1):
        if not re.fullmatch(r"[0-9a-f]{64}", key_digest):
            wrong = f"entry {number} of {front.args.api_keys} is not the sha256 of a key in hex"
            remedy = "printf %s KEY | sha256sum"
            raise BadInput(f"configuring the gateway of {front.target}", wrong, remedy)
    return "".join(f"{line}\n" for line in [*digests, own])


def certificate(front: Front) -> str:
    """Return a target's certificate and key. Raises BadInput where they can't be used."""
    text = contents(front, front.args.tls)
    try:
        # The password, too, would have to be asked for: nobody is there.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(front.args.tls, password=str)
    except (OSError, ValueError) as exc:
        raise BadInput(
            f"configuring the gateway of {front.target}",
            f"{front.args.tls} is no certificate with its key: {exc}",
            "put both into one PEM file",
        ) from exc
    return text


class Maps(NamedTuple):
    """The maps of a target, which change with the versions behind it."""

    health: MapFile
    """At which path each version says that it is well."""
    pins: MapFile
    """Which versions may be pinned."""
    operations: MapFile
    """What clients may ask: each method with its path after it."""
    models: MapFile
    """Which models a request may name."""


def maps(front: Front) -> Maps:
    """Return the maps of a target."""
    routes = [route for route in front.routes if not route.draining]
    health = {route.name: route.health for route in front.routes}
    # Asking a version for its health at another's path does no harm. While none serves, health is
    # not unknown, but bad.
    paths = {route.health for route in routes} or {HEALTH, *health.values()}
    operations = common_operations(route.operations for route in routes) | {
        f"GET {path}" for path in paths
    }
    return Maps(
        MapFile(f"{front.target}.health", health),
        MapFile(f"{front.target}.pins", {route.name: "1" for route in routes}),
        MapFile(
            f"{front.target}.operations",
            {operation.replace(" ", ""): "1" for operation in sorted(operations)},
        ),
        MapFile(f"{front.target}.models", dict.fromkeys(_models(front), "1")),
    )


def _models(front: Front) -> list[str]:
    """Return the names that every version goes by; any where one does not say, or none serves: the
    request is not wrong then, and told to come back.
    """
    routes = [route for route in front.routes if not route.draining]
    names = {name for route in routes for name in route.models}
    # A map's keys have no spaces, and nothing in them may have a meaning in a command.
    are_told = all(route.models for route in routes) and all(map(_MODEL.fullmatch, names))
    return sorted(names) if names and are_told and not front.args.any_model else [ANY_MODEL]


def _check(fronts: Sequence[Front]) -> None:
    doing = "configuring the gateway"
    for front in fronts:
        names = [route.name for route in front.routes]
        for name in (front.target, *names):
            if not NAME.fullmatch(name) or name in RESERVED:
                raise BadInput(
                    doing,
                    f"'{name}' cannot be a name there",
                    "use letters, digits, dots and dashes",
                )
        if not is_address(front.host):
            raise BadInput(doing, f"'{front.host}' of {front.target} is no address")
        if len(set(names)) < len(names):
            raise BadInput(doing, f"{front.target} has two versions of one name")
        if any(not re.fullmatch(r"/[^\s\"'\\]*", route.health) for route in front.routes):
            raise BadInput(doing, f"a health path of {front.target} is not a path")
        for operation in (operation for route in front.routes for operation in route.operations):
            if not is_operation(operation):
                wrong = f"an engine of {front.target} declares '{operation}'"
                raise BadInput(doing, wrong, "an operation is written POST /v1/completions")
    ports = [front.port for front in fronts]
    for front in fronts:
        if ports.count(front.port) > 1:
            raise BadInput(
                f"{doing} of {front.target}",
                f"port {front.port} is another target's",
                "choose another",
            )


def _opening(name: str) -> str:
    return f"""\
# Written by Weighbridge: changes made here are lost.
global
  description {name}
"""


def _global(settings: GlobalSettings, largest_body: int) -> str:
    # - len: haproxy cuts a line of the log that is longer, and half of one is no JSON.
    # - bufsize: a request waits in a buffer until all of it is there. The system gives haproxy the
    #   memory for as much of a buffer as is written to, page by page.
    return f"""\
  localpeer local
  log stdout len 8192 format raw local0
  tune.bufsize {largest_body + BUFFER_SPARE}
  maxconn {settings.connections}
  nbthread {settings.threads}
  hard-stop-after {HARD_STOP}
  ssl-default-bind-options ssl-min-ver TLSv1.2
"""


def _defaults(settings: GlobalSettings) -> str:
    pages = "".join(
        f"  http-error status {status} content-type application/json string {json_word(body)}"
        f"{f' hdr Retry-After {RETRY_AFTER}' if status == 503 else ''}\n"
        for status, body in _PAGES.items()
    )
    # - redispatch: what cannot connect to one version is tried on another; what was sent to one is
    #   never sent again.
    # - http-server-close: a connection to an engine serves one request, so that none is ever sent
    #   down one that the engine is closing.
    # - idle-close-on-response: a connection that idles through a reload serves one more request.
    return f"""\
peers weighbridge
  bind unix@{quoted(settings.peers)} mode 600
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
  timeout client 60s
{pages}"""


def _metrics(settings: GlobalSettings) -> str:
    return f"""\
frontend weighbridge-metrics
  bind 127.0.0.1:{settings.metrics_port}
  no log
  http-request use-service prometheus-exporter if {{ path /metrics }}
  http-request return status 404 content-type text/plain string /metrics
"""


def _backend(front: Front) -> str:
    # random(1): each request is an independent draw by weight, so that what two versions are given
    # can be compared. force-persist: a pinned version that is down is an error, never another
    # version's answer.
    wait = milliseconds(front.args.queue_seconds if front.args.queue else 0)
    health = f"map({front.target}.health,/health)"
    lines = [
        f"\nbackend {front.target}",
        "  balance random(1)",
        f"  timeout queue {wait}",
        f"  timeout server {milliseconds(front.args.answer_seconds)}",
        "  option httpchk",
        f"  http-check send meth GET uri-lf %[srv_name,{health}] ver HTTP/1.1 hdr Host localhost",
        "  http-check expect status 200",
        "  stick-table type string len 128 size 100k expire 2h peers weighbridge",
        "  force-persist if { var(txn.pinned) -m bool }",
        "  http-request del-header X-Weighbridge-Version",
        "  use-server %[var(txn.pin)] if { var(txn.pinned) -m bool }",
        "  stick on req.fhdr(X-Weighbridge-Session) unless { var(txn.pinned) -m bool }",
        # An engine lets in pages of any origin; who may is the gateway's to say.
        "  http-response del-header Access-Control- -m beg",
        "  http-response set-var(txn.type) res.fhdr(Content-Type)",
        "  http-response set-var(txn.head) res.hdrs,length",
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
