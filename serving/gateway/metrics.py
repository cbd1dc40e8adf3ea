"""What the gateway counted of one version, from its Prometheus metrics."""

import re
from collections.abc import Mapping

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


def since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Return the figures between two looks; counters that fell began anew with the gateway."""
    counters = {
        key: value for key, value in now.items() if key.startswith(("responses_", "bytes_"))
    }
    restarted = any(value < before.get(key, 0) for key, value in counters.items())
    increases = {
        key: value - (0 if restarted else before.get(key, 0)) for key, value in counters.items()
    }
    uploaded = increases.pop("bytes_in", 0.0)
    requests = sum(increases.values())
    shares = {"errors": increases.get("responses_5xx", 0) / requests} if requests else {}
    if requests and uploaded:
        shares["request_bytes"] = uploaded / requests
    gauges = {key: value for key, value in now.items() if key not in counters}
    return {**gauges, "requests": requests, **shares}
