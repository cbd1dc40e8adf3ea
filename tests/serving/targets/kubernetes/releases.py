"""A release and arguments of each kind, for the tests of manifests."""

from typing import Any, Final

from weighbridge.serving.targets.base import Release
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.manifests import (
    revision_manifests,
    target_manifests,
    traffic_manifests,
)
from weighbridge.serving.targets.kubernetes.overlay import Manifest

RELEASE: Final = Release(name="demo", version="7", bento="demo:q8-abc", digest=f"sha256:{'d' * 64}")
GATEWAY: Final = {"name": "public", "namespace": "gateways", "hostname": "demo.example.org"}
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "gateway": {"gateway": GATEWAY},
    "cards": {"resources": {"gpus": 2}, "surge": False, "runtime_class": "nvidia"},
    "init": {
        "model": "init",
        "store": {
            "uri": "s3://models/x",
            "endpoint": "http://minio:9000",
            "secret": "s3",
            "image": "registry.example/weighbridge-control:1",
        },
    },
    "volume": {"model": "oci_volume", "model_image": "registry.example/models/{name}:{bento}"},
    "hpa": {"autoscale": {"by": "hpa", "min_replicas": 2}},
    "keda": {"autoscale": {"by": "keda", "prometheus": "http://prometheus:9090"}},
    "all": {
        "replicas": 3,
        "pull_secret": "registry",
        "secrets": {"HF_TOKEN": {"name": "hub", "key": "token"}},
        "service_account": "model-reader",
        "priority_class": "serving",
        "node_selector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "clients": ["apps"],
        "networks": ["10.0.0.1/32"],
    },
}


def arguments(**changed: Any) -> KubernetesArgs:
    """Return the arguments of a target, with these as a recipe would give them."""
    given = {"image": "registry.example/demo:{version}", "namespace": "models", **changed}
    return KubernetesArgs.model_validate(given)


def all_manifests(target: str, args: KubernetesArgs, release: Release) -> list[Manifest]:
    """Return all that a target has where this release alone serves, under its version's name."""
    return [
        *target_manifests(target, args),
        *revision_manifests(target, args, release, release.version),
        *traffic_manifests(target, args, {release.version: 100}),
    ]
