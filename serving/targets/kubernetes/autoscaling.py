"""More replicas while requests pile up: a HorizontalPodAutoscaler, or KEDA's ScaledObject.

Both go by the requests that a replica works on or lets wait, which every Bento counts by itself
whatever its engine is (`weighbridge_requests_in_flight` at `/metrics`): processor and graphics card
are as busy with one long answer as with eight.
"""

from typing import Any

from weighbridge.serving.targets.kubernetes.api import API_VERSIONS
from weighbridge.serving.targets.kubernetes.args import Autoscale, KubernetesArgs
from weighbridge.serving.targets.kubernetes.names import Workload

METRIC = "weighbridge_requests_in_flight"


def autoscaler(args: KubernetesArgs, scale: Autoscale, workload: Workload) -> dict[str, Any]:
    """Return what scales a Deployment."""
    spec = _by_keda(workload.name, args, scale) if scale.by == "keda" else _by_itself(scale)
    return {
        "apiVersion": API_VERSIONS[scale.kind],
        "kind": scale.kind,
        "metadata": {"name": workload.name, "namespace": args.namespace, "labels": workload.labels},
        "spec": {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": workload.name,
            },
            **spec,
        },
    }


def _by_itself(scale: Autoscale) -> dict[str, Any]:
    return {
        "minReplicas": scale.min_replicas,
        "maxReplicas": scale.max_replicas,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": METRIC},
                    "target": {
                        "type": "AverageValue",
                        "averageValue": str(scale.requests_per_replica),
                    },
                },
            }
        ],
        "behavior": _behavior(scale),
    }


def _by_keda(name: str, args: KubernetesArgs, scale: Autoscale) -> dict[str, Any]:
    query = f'sum({METRIC}{{namespace="{args.namespace}",pod=~"{name}-.*"}})'
    return {
        "minReplicaCount": scale.min_replicas,
        "maxReplicaCount": scale.max_replicas,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scale)}},
        "triggers": [
            {
                "type": "prometheus",
                "metadata": {
                    "serverAddress": scale.prometheus,
                    "query": query,
                    "threshold": str(scale.requests_per_replica),
                },
            }
        ],
    }


def _behavior(scale: Autoscale) -> dict[str, Any]:
    # One at a time and late: a replica takes minutes to come, and must drain before it goes.
    one_a_minute = [{"type": "Pods", "value": 1, "periodSeconds": 60}]
    return {
        "scaleDown": {"stabilizationWindowSeconds": scale.down_seconds, "policies": one_a_minute}
    }
