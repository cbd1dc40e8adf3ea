"""Whose fault it is that a pod ended: of its revision, which fails then, or of its node."""

from typing import Any

import pytest

from weighbridge.serving.targets.kubernetes import pod_states

KILLED = {"name": "bento", "restartCount": 0, "state": {"terminated": {"exitCode": 137}}}
NODE_FULL = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi."
TOO_MUCH = "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. "
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}


def pod(reason: str, message: str, *conditions: dict[str, str]) -> dict[str, Any]:
    """A pod that its node has ended, as it stays in the list beside its successor."""
    status = {"phase": "Failed", "reason": reason, "message": message}
    containers = [KILLED] if reason == "Evicted" else []
    return {
        "metadata": {"name": "shop-v2-x", "uid": "1"},
        "status": {**status, "conditions": conditions, "containerStatuses": containers},
    }


def test_a_pod_that_took_more_than_it_may_fails_its_revision_with_the_nodes_words() -> None:
    failure = pod_states.failure([pod("Evicted", TOO_MUCH)], {})
    assert failure
    assert (failure.pod, failure.has_run) == ("shop-v2-x", True)
    assert "Evicted: Pod ephemeral local storage usage exceeds" in failure.why
    assert "deploy.target.resources" in failure.why


def test_a_bento_that_can_not_be_fetched_says_nothing_of_the_version() -> None:
    fetch = {**KILLED, "name": "fetch", "state": {"terminated": {"exitCode": 4}}}
    waiting = {"name": "bento", "state": {"waiting": {"reason": "PodInitializing"}}}
    status = {"phase": "Pending", "initContainerStatuses": [fetch], "containerStatuses": [waiting]}
    failure = pod_states.failure([{"metadata": {"name": "x", "uid": "1"}, "status": status}], {})
    assert failure
    assert (failure.container, failure.has_run) == ("fetch", False)


@pytest.mark.parametrize(
    "ended",
    [
        pod("Evicted", NODE_FULL, DISRUPTED),
        pod("Terminated", "Pod was terminated in response to imminent node shutdown.", DISRUPTED),
        pod("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu"),
        pod("UnexpectedAdmissionError", "Allocate failed: nvidia.com/gpu are unavailable"),
    ],
    ids=lambda one: one["status"]["reason"],
)
def test_a_pod_that_its_node_could_not_keep_is_told_of_until_another_is_made(
    ended: dict[str, Any],
) -> None:
    assert pod_states.failure([ended], {}) is None
    status = ended["status"]
    assert pod_states.waits_for([ended], None) == f"{status['reason']}: {status['message']}"
    loading = {"name": "bento", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    successor = {
        "metadata": {"name": "shop-v2-y", "uid": "2"},
        "status": {"phase": "Running", "containerStatuses": [loading]},
    }
    assert pod_states.waits_for([ended, successor], None) == ""
