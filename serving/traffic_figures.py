"""Figures of a revision's traffic, as `Target.traffic_figures` returns them.

Names that begin with `responses_`, `bytes_` or `seconds_total` are counters, which only grow; where
several count, each says behind an `@` which it is: `responses_2xx@POD`. Others stand as they are.
"""

from collections import defaultdict
from collections.abc import Mapping

_COUNTERS = ("responses_", "bytes_", "seconds_total")


def total(figures: Mapping[str, float], name: str) -> float:
    """Return what all that count come to; 0 where none does."""
    return sum(value for key, value in figures.items() if key.partition("@")[0] == name)


def since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Return the figures between two looks: `requests`, the share of them that are `errors`, their
    `seconds_average` where their seconds were counted, `request_bytes`, and what stands as it is.

    Counters that fell began anew with who counts; of one that came meanwhile all is new.
    """
    by_source: dict[str, dict[str, float]] = defaultdict(dict)
    gauges = {}
    for key, value in now.items():
        if key.startswith(_COUNTERS):
            by_source[key.partition("@")[2]][key] = value
        else:
            gauges[key] = value
    increases: dict[str, float] = defaultdict(float)
    for counters in by_source.values():
        began_anew = any(value < before.get(key, 0) for key, value in counters.items())
        for key, value in counters.items():
            increases[key.partition("@")[0]] += value - (0 if began_anew else before.get(key, 0))
    uploaded = increases.pop("bytes_in", 0.0)
    seconds = increases.pop("seconds_total", 0.0)
    requests = sum(increases.values())
    found = {**gauges, "requests": requests}
    if requests:
        found["errors"] = increases.get("responses_5xx", 0) / requests
    if requests and seconds:
        found["seconds_average"] = seconds / requests
    if requests and uploaded:
        found["request_bytes"] = uploaded / requests
    return found
