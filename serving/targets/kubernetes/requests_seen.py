"""What clients asked a target's pods, as they count it themselves (serving/request_watch.py)."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from weighbridge.core.errors import Unavailable
from weighbridge.serving.gateway.models import FinishedRequest
from weighbridge.serving.targets.kubernetes import names, pod_states
from weighbridge.serving.targets.kubernetes.reach import Pods

_LOOK_SECONDS: Final = 1.0
_UNKNOWN: Final = (0.0, -1)


class PodTraffic:
    """The requests that end at a target's pods from now on. For one thread."""

    def __init__(self, pods: Pods) -> None:
        self._pods = pods
        self._due = 0.0
        self._counted: dict[str, tuple[float, int]] = {}
        """By a pod's uid: since when it counts, and how many of its requests were read."""
        for pod in self._running():
            self._counted[pod["metadata"]["uid"]] = _UNKNOWN
            for _ in self._new(pod):
                pass

    def read(self) -> list[FinishedRequest]:
        """Return those that ended since the last call, as far as pods could be asked."""
        if time.monotonic() < self._due:
            return []
        self._due = time.monotonic() + _LOOK_SECONDS
        found = [request for pod in self._running() for request in self._new(pod)]
        return sorted(found, key=lambda request: request.at)

    def _running(self) -> list[pod_states.Pod]:
        try:
            pods = self._pods.listed()
        except Unavailable:
            return []
        return [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]

    def _new(self, pod: pod_states.Pod) -> Iterator[FinishedRequest]:
        uid = pod["metadata"]["uid"]
        # Of a pod that came later everything is new.
        since, seen = self._counted.get(uid, (0.0, 0))
        document = self._pods.document(pod, f"/requests?after={max(seen, 0)}")
        if document and since and seen and document["since"] != since:
            # Its process was started again, and counts anew.
            document = self._pods.document(pod, "/requests?after=0")
        if document is None:
            return
        self._counted[uid] = (document["since"], document["count"])
        if (since, seen) == _UNKNOWN:
            return
        revision = pod["metadata"]["labels"].get(names.REVISION_LABEL, "")
        for ended in document["ended"]:
            if request := _request(ended, revision):
                yield request


def figures(pods: Pods) -> dict[str, float]:
    """Return what pods counted of their clients, each for itself (serving/traffic_figures.py).

    Nothing where one of them does not tell: counted without it, all that it has answered would be
    taken for new the next time. Nothing of a Bento that is too old to count, either.
    """
    counted: dict[str, float] = {"in_flight": 0.0}
    try:
        listed = pods.listed(anew=True)
    except Unavailable:
        return {}
    for pod in listed:
        if pod_states.is_ending(pod) or pod.get("status", {}).get("phase") != "Running":
            continue
        document = pods.document(pod, "/requests")
        if document is None or "totals" not in document:
            return {}
        source = f"{pod['metadata']['uid']}.{document['since']}"
        counted["in_flight"] += document["in_flight"]
        counted |= {f"{name}@{source}": count for name, count in document["totals"].items()}
    return counted


def in_flight(pods: Pods) -> int:
    """Return how many requests of clients pods are answering; 1 for each that does not say."""
    try:
        listed = pods.listed(anew=True)
    except Unavailable:
        return 1
    total = 0
    for pod in listed:
        if pod.get("status", {}).get("phase") == "Running":
            document = pods.document(pod, "/requests")
            total += 1 if document is None else int(document.get("in_flight", 1))
    return total


def _request(ended: Mapping[str, Any], revision: str) -> FinishedRequest | None:
    fields = {name: value for name, value in ended.items() if name != "number"}
    try:
        return FinishedRequest(server=revision, **fields)
    except (ValidationError, TypeError):
        return None
