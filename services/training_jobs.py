"""A fine-tune over several machines as a Kubernetes manifest: Kubeflow's TrainJob, or a JobSet.

Pure functions. What every pod runs is `weighbridge.tasks.ranks`' own command; where the ranks meet
is set by Kubeflow's runtime `torch-distributed` (its PET_… variables), or by the name that a JobSet
gives its first pod.
"""

from collections.abc import Sequence
from typing import Any, Final

from weighbridge.core.container_layout import (
    CACHE,
    HOME,
    container_security,
    one_per_node,
    pod_security,
)
from weighbridge.flows.pools.base import JobDefaults
from weighbridge.tasks.ranks import PORT, RankRequest, rank_words, torchrun_command

Manifest = dict[str, Any]
_REPLICATED: Final = "node"


def train_job(request: RankRequest, args: JobDefaults) -> Manifest:
    """Return a TrainJob of Kubeflow's that runs a fine-tune on its machines."""
    trainer = {
        "image": args.image,
        "numNodes": request.args.nodes,
        "numProcPerNode": request.args.processes_per_node,
        "command": ["torchrun", *rank_words(request)],
        "env": _env(args),
        "resourcesPerNode": {"limits": _resources(args), "requests": _resources(args)},
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(request),
        "spec": {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer},
    }


def job_set(request: RankRequest, args: JobDefaults) -> Manifest:
    """Return a JobSet that runs a fine-tune on its machines."""
    name = request.run_id
    # The first pod of the first job, under the service that a JobSet makes and calls like itself.
    first = f"{name}-{_REPLICATED}-0-0.{name}:{PORT}"
    nodes = request.args.nodes
    job = {
        "parallelism": nodes,
        "completions": nodes,
        "completionMode": "Indexed",
        # Of the JobSet: all ranks begin again together, from the last checkpoint.
        "backoffLimit": 0,
        "template": {
            "metadata": {"labels": _labels()},
            "spec": _pod(torchrun_command(request, first), args),
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(request),
        "spec": {
            "failurePolicy": {"maxRestarts": 3},
            "replicatedJobs": [{"name": _REPLICATED, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(command: Sequence[str], args: JobDefaults) -> dict[str, Any]:
    resources = _resources(args)
    container = {
        "name": "finetune",
        "image": args.image,
        "command": list(command),
        "env": _env(args),
        "ports": [{"containerPort": PORT}],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": HOME, "subPath": "home"},
            {"name": "scratch", "mountPath": CACHE, "subPath": "cache"},
            {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    shared_memory = {"medium": "Memory", "sizeLimit": str(int(args.shared_memory))}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        # Two of them on one machine would share its cards, and its way to the others.
        "affinity": {"podAntiAffinity": one_per_node(_labels())},
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "shm", "emptyDir": shared_memory},
        ],
    }


def _env(args: JobDefaults) -> list[dict[str, Any]]:
    plain = [{"name": name, "value": value} for name, value in sorted(args.env.items())]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": args.secret, "key": name}}}
        for name in args.secrets
    ]
    return [*plain, *secret]


def _resources(args: JobDefaults) -> dict[str, str]:
    memory = {"memory": str(int(args.memory))} if args.memory else {}
    return {**memory, **({"nvidia.com/gpu": str(args.gpus)} if args.gpus else {})}


def _metadata(request: RankRequest) -> dict[str, Any]:
    return {"name": request.run_id, "labels": _labels()}


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": "weighbridge", "app.kubernetes.io/component": "finetune"}
