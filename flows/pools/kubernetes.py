"""Template of Kubernetes pools: jobs are Jobs, at most one on each node."""

from typing import Any, Final

from weighbridge.core.container_layout import (
    CACHE,
    HOME,
    container_security,
    one_per_node,
    pod_security,
)
from weighbridge.flows.pools.base import (
    COMMON,
    LABELS,
    START_SECONDS,
    JobDefaults,
    Template,
    base_template,
    block_schema,
    bytes_text,
    common,
    image_variable,
    in_containers,
    value_of,
    variable,
)

DEADLINE_SECONDS: Final = 7 * 24 * 3600
"""A fine-tune that takes longer is begun again from its last checkpoint; what was given up before
its pod began, which Prefect's worker leaves behind, waits no longer.
"""


def kubernetes_template(defaults: JobDefaults) -> Template:
    """Return the template: secrets are the keys of one Secret of the namespace."""
    memory, cpu = bytes_text(defaults.memory), _cores(defaults.cpus)
    # Else a secret that is missing stops the pod before it starts, and its status says which.
    env_from = [{"secretRef": {"name": defaults.secret}}] if defaults.secrets else []
    variables = {
        **common(in_containers(defaults.env)),
        "image": image_variable(defaults),
        "image_pull_policy": {
            **variable("string", "When to pull the image.", "IfNotPresent"),
            "enum": ["IfNotPresent", "Always", "Never"],
        },
        "image_pull_secrets": variable("array", "Secrets of the registry, each as {name: …}."),
        "namespace": variable("string", "Namespace of the jobs.", "default"),
        "service_account_name": variable("string", "Service account of the pods."),
        "env_from": variable("array", "Secrets whose keys become variables.", env_from),
        "cpu": variable("string", "Cores: request and limit.", cpu),
        "memory": variable("string", "Memory: request and limit.", memory),
        "gpus": variable(
            "string", "Of nvidia.com/gpu.", str(defaults.gpus) if defaults.gpus else None
        ),
        "shm_size": variable(
            "string", "Size of /dev/shm; it counts as memory.", bytes_text(defaults.shared_memory)
        ),
        "scratch_size": variable(
            "string", "Most that home and cache may take of the node's disk, such as 200Gi."
        ),
        "node_selector": variable("object", "Labels of the nodes to run on."),
        "tolerations": variable("array", "Taints that are accepted.", _tolerations(defaults.gpus)),
        "priority_class_name": variable("string", "Priority class of the pods."),
        "finished_job_ttl": variable(
            "integer", "Seconds for which a job that has ended is kept.", 3600
        ),
        "active_deadline_seconds": variable(
            "integer",
            "Seconds after which a job is ended, whether its pod has begun or waits.",
            DEADLINE_SECONDS,
        ),
        "job_watch_timeout_seconds": variable(
            "integer",
            "Seconds between two events of a job; prefect-kubernetes 0.8 reads it no more.",
        ),
        "pod_watch_timeout_seconds": variable(
            "integer",
            "Seconds within which a pod must run; prefect-kubernetes 0.8 reads it no more.",
            START_SECONDS,
        ),
        "stream_output": variable("boolean", "Show the output in the worker's.", True),
        "cluster_config": {
            "title": "Cluster config",
            "description": "Another cluster than the one the worker runs in.",
            "allOf": [{"$ref": "#/definitions/KubernetesClusterConfig"}],
        },
    }
    configuration = {
        **{name: value_of(name) for name in COMMON},
        "namespace": value_of("namespace"),
        "job_manifest": _job_manifest(),
        **{
            name: value_of(name)
            for name in (
                "cluster_config",
                "job_watch_timeout_seconds",
                "pod_watch_timeout_seconds",
                "stream_output",
            )
        },
    }
    return base_template(configuration, variables, {"KubernetesClusterConfig": _CLUSTER_CONFIG})


def _job_manifest() -> dict[str, Any]:
    """Return the Job that one stage becomes."""
    resources = {
        "cpu": value_of("cpu"),
        "memory": value_of("memory"),
        "nvidia.com/gpu": value_of("gpus"),
    }
    container = {
        "name": "prefect-job",
        "image": value_of("image"),
        "imagePullPolicy": value_of("image_pull_policy"),
        "args": value_of("command"),
        "env": value_of("env"),
        "envFrom": value_of("env_from"),
        # Equal: what is measured must not depend on who else is on the node.
        "resources": {"requests": resources, "limits": resources},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": HOME, "subPath": "home"},
            {"name": "scratch", "mountPath": CACHE, "subPath": "cache"},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    pod = {
        # Prefect's worker wants the two here, where Kubernetes reads neither.
        "parallelism": 1,
        "completions": 1,
        "restartPolicy": "Never",
        "serviceAccountName": value_of("service_account_name"),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "imagePullSecrets": value_of("image_pull_secrets"),
        "nodeSelector": value_of("node_selector"),
        "tolerations": value_of("tolerations"),
        "priorityClassName": value_of("priority_class_name"),
        # A checkpoint is written, and the run says why it ended.
        "terminationGracePeriodSeconds": 60,
        "securityContext": pod_security(),
        # Two stages on one node would measure each other.
        "affinity": {"podAntiAffinity": one_per_node(LABELS)},
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": value_of("scratch_size")}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": value_of("shm_size")}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "labels": LABELS,
            "namespace": value_of("namespace"),
            "generateName": "{{ name }}-",
        },
        "spec": {
            # Who tries again is the flow: it knows whether that can help.
            "backoffLimit": 0,
            "activeDeadlineSeconds": value_of("active_deadline_seconds"),
            "ttlSecondsAfterFinished": value_of("finished_job_ttl"),
            "template": {"metadata": {"labels": LABELS}, "spec": pod},
        },
    }


def _cores(cpus: float | None) -> str | None:
    """Return cores as Kubernetes writes them."""
    return None if cpus is None else f"{round(cpus * 1000)}m"


def _tolerations(gpus: int) -> list[dict[str, str]] | None:
    """Return the taint by which clusters keep others off nodes with graphics cards."""
    if not gpus:
        return None
    return [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


_CLUSTER_CONFIG: Final = block_schema(
    "KubernetesClusterConfig",
    "kubernetes-cluster-config",
    {"config": {"type": "object"}, "context_name": {"type": "string"}},
)
