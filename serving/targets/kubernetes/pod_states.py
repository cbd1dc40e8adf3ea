"""Why pods do not serve, as Kubernetes says: an image that can't be had, no room, a process that
ended.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Pod = Mapping[str, Any]

_ENDS_IT: Final = frozenset(
    {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
    | {"CreateContainerError", "RunContainerError", "CrashLoopBackOff", "StartError"}
)
"""Reasons of a waiting container that nothing but another manifest, or another image, mends."""
_FINAL_PULL: Final = re.compile(
    r"not found|manifest unknown|does not exist|unauthorized|authorize|denied|forbidden|40[134]",
    re.IGNORECASE,
)
"""In the message of a first pull that failed: another try comes to the same."""
_STARTING: Final = frozenset({"ContainerCreating", "PodInitializing"})
_NO_LOGIN: Final = re.compile(r"unauthorized|authorize|denied|forbidden|40[13]", re.IGNORECASE)


def name_of(pod: Pod) -> str:
    """Return a pod's name."""
    return str(pod["metadata"]["name"])


def is_ending(pod: Pod) -> bool:
    """Whether a pod is being ended."""
    return "deletionTimestamp" in pod["metadata"]


def is_ready(pod: Pod) -> bool:
    """Whether a pod answers, and is not being ended."""
    conditions = _conditions(pod)
    return not is_ending(pod) and conditions.get("Ready", {}).get("status") == "True"


def restarts(pods: Iterable[Pod]) -> dict[tuple[str, str], int]:
    """Return how often each container was started again, by the pod's uid and its name."""
    return {
        (pod["metadata"]["uid"], status["name"]): status.get("restartCount", 0)
        for pod in pods
        for status in _containers(pod)
    }


@dataclass(frozen=True)
class Failure:
    """Why a revision will not serve."""

    pod: str
    container: str
    """Of which that is said; empty: of all of them."""
    why: str
    has_run: bool
    """Whether a process that serves has; where none has, nothing is known of the version."""


def failure(pods: Iterable[Pod], before: Mapping[tuple[str, str], int]) -> Failure | None:
    """Return why a revision will not serve; None: it still may.

    Args:
        pods: of the revision.
        before: what `restarts` said when it was started.
    """
    for pod in pods:
        if _is_replaced(pod):
            continue
        if why := _why_evicted(pod):
            return Failure(name_of(pod), "", why, has_run=True)
        for status in _containers(pod):
            serves = status in (pod["status"].get("containerStatuses") or ())
            count = before.get((pod["metadata"]["uid"], status["name"]), 0)
            if why := _why_ended(status, count):
                return Failure(name_of(pod), status["name"], why, has_run=serves)
            if why := _why_stuck(status):
                has_run = serves and bool(status.get("restartCount"))
                return Failure(name_of(pod), status["name"], why, has_run=has_run)
    return None


def waits_for(pods: Sequence[Pod], deployment: Mapping[str, Any] | None) -> str:
    """Return what keeps a Deployment's pods from serving that may yet come; empty for nothing."""
    refused = _conditions(deployment or {}).get("ReplicaFailure", {})
    if refused.get("status") == "True":
        # A quota, or what the namespace's rules allow a pod.
        return f"{refused.get('reason', '')}: {refused.get('message', '')}".rstrip(": ")
    for pod in pods:
        placed = _conditions(pod).get("PodScheduled", {})
        if placed.get("status") == "False" and not is_ending(pod):
            reason = placed.get("reason") or "Unschedulable"
            return f"{reason}: {placed.get('message', '')}".rstrip(": ")
    for pod in pods:
        for status in _containers(pod):
            waiting = status.get("state", {}).get("waiting") or {}
            if waiting.get("reason", "") not in {"", *_STARTING}:
                return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    ended = [pod["status"] for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    # Its node ended it, or could not take it after all. It stays in the list once another is made.
    if ended and len(ended) == len(pods) and (reason := ended[-1].get("reason")):
        return f"{reason}: {ended[-1].get('message', '')}".rstrip(": ")
    return ""


def _is_replaced(pod: Pod) -> bool:
    """Whether a pod is ended through no fault of its own: its node is drained, or full, or somebody
    more urgent needs the room.
    """
    return is_ending(pod) or _conditions(pod).get("DisruptionTarget", {}).get("status") == "True"


def _why_evicted(pod: Pod) -> str:
    """Return why a pod was evicted that took more than it may; its successor would take as much."""
    status = pod.get("status", {})
    if (status.get("phase"), status.get("reason")) != ("Failed", "Evicted"):
        return ""
    said = str(status.get("message", "")).strip(" .")
    return f"Evicted: {said}; where it needs so much, raise deploy.target.resources"


def _why_ended(status: Mapping[str, Any], restarts_before: int) -> str:
    ended = status.get("state", {}).get("terminated") or {}
    is_again = status.get("restartCount", 0) > restarts_before
    last = status.get("lastState", {}).get("terminated") or {}
    end = ended or last
    # An init container that ended well has done its work.
    if (ended.get("exitCode", 0) != 0) or (is_again and end):
        return f"{end.get('reason') or 'Error'} (exit code {end.get('exitCode')})"
    return ""


def _why_stuck(status: Mapping[str, Any]) -> str:
    waiting = status.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _ENDS_IT or (reason == "ErrImagePull" and _FINAL_PULL.search(message)):
        advice = ""
        if "Pull" in reason and _NO_LOGIN.search(message):
            advice = "; name a Secret with the registry's login in deploy.target.pull_secret"
        return f"{reason}: {message}{advice}"
    return ""


def _containers(pod: Pod) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _conditions(pod: Pod) -> dict[str, Mapping[str, Any]]:
    return {one["type"]: one for one in pod.get("status", {}).get("conditions") or ()}
