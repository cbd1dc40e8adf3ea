"""A target's frontend in haproxy's configuration: who is let in, with what, and for what.

Nothing here touches haproxy.
"""

from collections.abc import Iterator
from typing import Final

from weighbridge.serving.client_requests import BODY_TOO_LARGE, UNKNOWN_OPERATION, openai_error
from weighbridge.serving.gateway.models import ANY_ORIGIN, Front
from weighbridge.serving.gateway.syntax import address, answer, json_word, milliseconds

RETRY_AFTER: Final = 5
"""Seconds that a client is told to wait."""
URL_BYTES: Final = 8 << 10
ANYONE: Final = "anyone"
"""In the file of keys: no key is needed. Whether one is needed changes at run time like the keys
themselves, also for connections that a worker from before a reload still has.
"""
HEADER_BYTES: Final = 16 << 10
"""Most of a request's head: with its body it must fit into one buffer of haproxy's."""

# json(utf8s): a client may send any bytes, and this leaves out those that are no text.
_LOG = (
    '{"target":"%f","server":"%s","status":%ST,"first_byte_ms":%Tr,"ms":%Ta,'
    '"ended":%[date(0,ms)],"cut":"%ts","type":"%[var(txn.type),json(utf8s)]",'
    '"pinned":%[var(txn.pinned)],"id":"%[var(txn.id),bytes(0,128),json(utf8s)]",'
    '"method":"%[var(txn.method),json(utf8s)]","path":"%[var(txn.path),bytes(0,256),json(utf8s)]",'
    '"bytes":%B,"head":%[var(txn.head)],"queue_ms":%Tw,"retries":"%rc"}'
)
"""A line of the access log, with haproxy's names for the values; AccessLog reads it."""

_NO_KEY = openai_error(
    "A valid API key is needed: Authorization: Bearer KEY.",
    "invalid_request_error",
    "invalid_api_key",
)
_NO_PIN = openai_error(
    "The version in X-Weighbridge-Version is not served here.",
    "invalid_request_error",
    "model_not_found",
)
_HEAD_TOO_LARGE = openai_error(
    "The head of the request is too large.", "invalid_request_error", "request_too_large"
)
_TOO_MANY = openai_error(
    "Too many requests of this address are under way: try again later.",
    "rate_limit_error",
    "rate_limit_exceeded",
)
_BUSY = openai_error("Every place is taken: try again later.", "server_error", "overloaded")
ANY_MODEL: Final = "*"
"""In the map of models: every name will do."""
_COME_BACK = f"Retry-After {RETRY_AFTER}"
# Of IPv6 whoever has one address has a network of 64 bits.
_CLIENT = "src,ipmask(32,64)"


def frontend(front: Front, connections: int) -> str:
    """Return the section, and those of the tables that it counts in.

    Args:
        front: what is asked for.
        connections: that haproxy takes in all.
    """
    most = front.args.connections_per_address or max(1, connections // 2)
    lines = [
        *_counters(front),
        f"frontend {front.target}",
        _bind(front),
        f"  log-format '{_LOG}'",
        f"  timeout client {milliseconds(front.args.idle_seconds)}",
        f"  timeout http-request {milliseconds(front.args.request_seconds)}",
        *_connection_limits(front, most),
        *_identity(),
        *_cross_origin(front),
        f"  http-request track-sc1 {_CLIENT} table {front.target}:requests",
        f"  http-request {answer(429, _TOO_MANY, _COME_BACK)} if {{ sc1_conn_cur gt {most} }}",
        *_keys(front),
        *_operations(front),
        *_body(front),
        *_model(front),
        *_queue(front),
        f"  default_backend {front.target}\n",
    ]
    return "\n".join(lines)


def _counters(front: Front) -> Iterator[str]:
    # Two tables, as a table counts an address once. A colon is in no target's name.
    for name, counts in (
        ("connections", "conn_cur,conn_rate(10s)"),
        # Over HTTP/2 a connection has many.
        ("requests", "conn_cur"),
    ):
        yield f"backend {front.target}:{name}"
        yield f"  stick-table type ipv6 size 100k expire 1m store {counts}\n"


def _bind(front: Front) -> str:
    tls = f" ssl crt {front.target}.pem alpn h2,http/1.1" if front.args.tls else ""
    v6 = " v6only" if front.host == "::1" else ""
    return f"  bind {address(front.host, front.port)}{v6}{tls}"


def _connection_limits(front: Front, most: int) -> Iterator[str]:
    # Before anything is read: one that sends nothing takes a place too.
    yield f"  tcp-request connection track-sc0 {_CLIENT} table {front.target}:connections"
    yield f"  tcp-request connection reject if {{ sc0_conn_cur gt {most} }}"
    if rate := front.args.new_connections_per_address:
        yield f"  tcp-request connection reject if {{ sc0_conn_rate gt {rate} }}"


def _identity() -> list[str]:
    # Whatever the log tells of a request is kept in variables: it is gone when the answer ends.
    return [
        "  http-request set-var(txn.method) method",
        "  http-request set-var(txn.path) path",
        "  http-request set-var(txn.pinned) bool(false)",
        "  http-request set-var(txn.head) int(0)",
        "  http-request set-header X-Request-ID %[uuid()]"
        " unless { req.hdr(X-Request-ID) -m len gt 0 }",
        "  http-request set-var(txn.id) req.fhdr(X-Request-ID)",
        "  http-after-response set-header X-Request-ID %[var(txn.id)] if { var(txn.id) -m found }",
        "  http-request set-var(txn.pin) req.fhdr(X-Weighbridge-Version)",
        f"  http-request set-var(txn.pinned) bool(true) if {_PINNED}",
    ]


_PINNED = "{ var(txn.pin) -m len gt 0 }"


def _cross_origin(front: Front) -> list[str]:
    """Return what lets pages of the origins that were named use this address; before the key is
    asked for, since a browser's preflight request carries none.
    """
    origins, named = front.args.cors_origins, "{ var(txn.origin) -m found }"
    if not origins:
        return []
    if any_origin := origins == (ANY_ORIGIN,):
        remembered = f"str({ANY_ORIGIN}) if {{ req.hdr(Origin) -m found }}"
    else:
        remembered = f"req.hdr(Origin) if {{ req.hdr(Origin) -m str {' '.join(origins)} }}"
    preflight = (
        "return status 204 hdr Access-Control-Allow-Methods 'GET, POST'"
        " hdr Access-Control-Allow-Headers %[req.fhdr(Access-Control-Request-Headers)]"
        " hdr Access-Control-Max-Age 600"
    )
    # http-after-response: errors of the gateway's own are a page's to read, too.
    exposed = "X-Weighbridge-Version, X-Request-ID, Retry-After"
    headers = ["Access-Control-Allow-Origin %[var(txn.origin)]"]
    headers += [] if any_origin else ["Access-Control-Allow-Credentials true"]
    headers += [f"Access-Control-Expose-Headers '{exposed}'"]
    return [
        f"  http-request set-var(txn.origin) {remembered}",
        f"  http-request {preflight} if METH_OPTIONS {named}"
        " { req.hdr(Access-Control-Request-Method) -m found }",
        *(f"  http-after-response set-header {header} if {named}" for header in headers),
        "  http-after-response add-header Vary Origin",
    ]


def _keys(front: Front) -> list[str]:
    # haproxy writes hex in capitals, sha256sum does not.
    has_key = f"{{ http_auth_bearer,sha2(256),hex,lower -m str -f {front.target}.keys }}"
    is_open = f"{{ str({ANYONE}) -m str -f {front.target}.keys }}"
    return [
        f"  http-request {answer(401, _NO_KEY, 'WWW-Authenticate Bearer')}"
        f" unless {has_key} || {is_open}",
        # The engine must not see, nor log, a client's key.
        "  http-request del-header Authorization",
    ]


def _operations(front: Front) -> list[str]:
    # - The path as it came, encoded or not, decides: what an engine would make of another spelling
    #   does not matter. A map's keys have no spaces.
    # - set-uri: an absolute address as the target of a request goes on as the path that was judged.
    # - Upgrade: a connection that speaks something else from then on would get round all this.
    declared = f"{{ var(txn.operation),map({front.target}.operations) -m found }}"
    pin_is_served = f"{{ var(txn.pin),map({front.target}.pins) -m found }}"
    return [
        "  http-request set-var-fmt(txn.operation) %[method]%[path]",
        f"  http-request {answer(404, UNKNOWN_OPERATION)} unless {declared}",
        "  http-request set-uri %[pathq]",
        "  http-request del-header Upgrade",
        f"  http-request {answer(404, _NO_PIN)} if {_PINNED} !{pin_is_served}",
    ]


def _body(front: Front) -> list[str]:
    # Twice: a body without a length is known to be too large only once it has come. haproxy stops
    # waiting where its buffer is full, which is larger than the largest body with the largest head.
    too_large = (
        f"{answer(413, BODY_TOO_LARGE)} if {{ req.body_size gt {front.args.max_body_bytes} }}"
    )
    large_head = f"{{ url -m len gt {URL_BYTES} }} || {{ req.hdrs -m len gt {HEADER_BYTES} }}"
    return [
        f"  http-request {answer(431, _HEAD_TOO_LARGE)} if {large_head}",
        f"  http-request {too_large}",
        f"  http-request wait-for-body time {milliseconds(front.args.request_seconds)}",
        f"  http-request {too_large}",
    ]


def _model(front: Front) -> list[str]:
    # A body without a name, or that is no JSON, is the engine's to refuse.
    named = "{ var(txn.model) -m len gt 0 }"
    place = "NAME"
    known = f"{{ var(txn.model),map({front.target}.models) -m found }}"
    any_model = f"{{ str({ANY_MODEL}),map({front.target}.models) -m found }}"
    refusal = openai_error(
        f"The model `{place}` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    )
    text = json_word(refusal).replace(place, "%[var(txn.model),bytes(0,128),json(utf8s)]")
    return [
        "  http-request set-var(txn.model) req.body,json_query('$.model') if METH_POST",
        f"  http-request return status 404 content-type application/json lf-string {text}"
        f" if {named} !{known} !{any_model}",
    ]


def _queue(front: Front) -> list[str]:
    if not front.args.queue:
        return []
    is_full = f"{{ queue({front.target}) ge {front.args.queue} }}"
    return [f"  http-request {answer(503, _BUSY, _COME_BACK)} if {is_full}"]
