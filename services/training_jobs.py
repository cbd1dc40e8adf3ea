"""A fine-tune over several machines as a Kubernetes manifest: Kubeflow's TrainJob, or a JobSet.

Pure functions. What every pod runs is `weighbridge.tasks.ranks`' own command; where the ranks meet
is set by Kubeflow's runtime `torch-distributed` (its PET_… variables), or by the name that a JobSet
gives its first pod.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from weighbridge.core.container_layout import CACHE, HOME, container_security, pod_security
from weighbridge.tasks.ranks import PORT, RankRequest, rank_words, torchrun_command

Manifest = dict[str, Any]
_REPLICATED: Final = "node"


class PodArgs(BaseModel):
    """What the pods of a fine-tune are given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(description="Image of the control plane, as `weighbridge image` named it.")
    env: Mapping[str, str] = Field({}, description="Environment variables that are no secrets.")
    secrets: tuple[str, ...] = Field((), description="Keys of the Secret that become variables.")
    secret: str = Field("weighbridge", description="Name of the Secret.")
    gpus: int = Field(0, ge=0, description="Graphics cards of a pod.")
    memory: ByteSize | None = Field(None, gt=0, description="Memory of a pod.")
    shared_memory: ByteSize = Field(ByteSize(1 << 30), gt=0, description="Size of /dev/shm.")


def train_job(request: RankRequest, args: PodArgs) -> Manifest:
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


def job_set(request: RankRequest, args: PodArgs) -> Manifest:
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


def _pod(command: Sequence[str], args: PodArgs) -> dict[str, Any]:
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
        "affinity": {"podAntiAffinity": _apart()},
        "containers": [container],
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "shm", "emptyDir": shared_memory},
        ],
    }


def _apart() -> dict[str, Any]:
    term = {"labelSelector": {"matchLabels": _labels()}, "topologyKey": "kubernetes.io/hostname"}
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _env(args: PodArgs) -> list[dict[str, Any]]:
    plain = [{"name": name, "value": value} for name, value in sorted(args.env.items())]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": args.secret, "key": name}}}
        for name in args.secrets
    ]
    return [*plain, *secret]


def _resources(args: PodArgs) -> dict[str, str]:
    memory = {"memory": str(int(args.memory))} if args.memory else {}
    return {**memory, **({"nvidia.com/gpu": str(args.gpus)} if args.gpus else {})}


def _metadata(request: RankRequest) -> dict[str, Any]:
    return {"name": request.run_id, "labels": _labels()}


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": "weighbridge", "app.kubernetes.io/component": "finetune"}
