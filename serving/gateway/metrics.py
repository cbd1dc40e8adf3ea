"""What the gateway counted of one version, from its Prometheus metrics."""

import re

import httpx

from weighbridge.core import loopback

# Only the counters of responses have a `code`: the class of the status, such as 5xx.
_LINE = re.compile(
    r'haproxy_server_(\w+)\{proxy="([^"]*)",server="([^"]*)"(?:,code="(\w+)")?\} (\S+)'
)
_NAMES = {
    "http_responses_total": "responses",
    "total_time_average_seconds": "seconds_average",
    "queue_time_average_seconds": "queue_seconds_average",
    "current_sessions": "in_flight",
    "bytes_in_total": "bytes_in",
}


def figures(port: int | None, target: str, server: str) -> dict[str, float]:
    """Return `responses_2xx` … `responses_5xx` since the gateway started, averages over the last
    1,024 requests, requests in flight, and the bytes of all requests, `bytes_in`.

    Args:
        port: of the gateway's metrics; None where it was never asked for.
        target: its name.
        server: the version.

    Returns:
        Nothing where the gateway does not answer, or does not know the version.
    """
    if port is None:
        return {}
    try:
        text = loopback.get(f"http://127.0.0.1:{port}/metrics").raise_for_status().text
    except httpx.HTTPError:
        return {}
    counted = {}
    for name, proxy, proxy_server, code, value in _LINE.findall(text):
        if (proxy, proxy_server) == (target, server) and name in _NAMES:
            counted[f"{_NAMES[name]}_{code}" if code else _NAMES[name]] = float(value)
    return counted
