"""The same release for what others run: KServe, Argo Rollouts, SkyPilot.

They take the very image and options that were weighed. How a version takes over is theirs then, and
without our evidence: no probe questions, no comparison of errors and latency.
"""

import math
import shlex
from collections.abc import Sequence
from typing import Any, Final

from weighbridge.core.errors import BadInput
from weighbridge.serving.bento_process import variables
from weighbridge.serving.targets.base import Release
from weighbridge.serving.targets.kubernetes import names
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs, amount
from weighbridge.serving.targets.kubernetes.manifests import rolling_manifests
from weighbridge.serving.targets.kubernetes.names import HTTP_PORT
from weighbridge.serving.targets.kubernetes.overlay import Manifest
from weighbridge.serving.targets.kubernetes.pods import (
    BENTO_IN_IMAGE,
    ENGINE_PORT,
    KEEP_ALIVE,
    filled_in,
)

KSERVE_CONTAINER: Final = "main"
"""What KServe's own templates call the container that serves; ours is merged into it."""
KSERVE_PORT: Final = 8000
"""Where KServe's Service looks for it."""
_ALL: Final = 100
_OPTIONS: Final = ("serve", "--host", "0.0.0.0", "--port", str(HTTP_PORT), *KEEP_ALIVE)


def argo_rollouts(
    target: str, args: KubernetesArgs, release: Release, steps: Sequence[int], step_seconds: float
) -> list[Manifest]:
    """Return an Argo Rollout in place of the Deployment, and two Services that it tells apart.

    Args:
        target: the target's name.
        args: its arguments. With a gateway, Argo's Gateway API plugin sets the route's weights;
            without, the share of the traffic is that of the pods.
        release: what it serves.
        steps: percent of the requests, step by step, as in `deploy.rollout.steps`.
        step_seconds: least time of a step.

    Raises:
        BadInput: the name of an image can't be filled in, or the overlay is merged into nothing.
    """
    manifests = rolling_manifests(target, args, release)
    name = names.target_name(target)
    canary = f"{name}-canary"
    scaled = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": name}

    def exported(manifest: Manifest) -> list[Manifest]:
        match manifest["kind"]:
            case "Deployment":
                return [_as_rollout(manifest, args, steps, step_seconds)]
            case "Service":
                second = {**manifest["metadata"], "name": canary}
                return [manifest, {**manifest, "metadata": second}]
            case "HTTPRoute":
                return [_with_canary(manifest, canary)]
            case "HorizontalPodAutoscaler" | "ScaledObject":
                return [{**manifest, "spec": {**manifest["spec"], "scaleTargetRef": scaled}}]
        return [manifest]

    return [one for manifest in manifests for one in exported(manifest)]


def kserve(target: str, args: KubernetesArgs, release: Release) -> list[Manifest]:
    """Return an LLMInferenceService whose container is ours.

    Raises:
        BadInput: as `argo_rollouts`; or the Bento is not in the image: KServe's own loader can't
            read our store.
    """
    _require_whole_image(target, args, "KServe", "KServe mounts volumes of its own")
    manifests = rolling_manifests(target, args, release, port=KSERVE_PORT)
    deployment = next(one for one in manifests if one["kind"] == "Deployment")
    spec, template = deployment["spec"], deployment["spec"]["template"]
    router: dict[str, Any] = {"route": {}}
    if args.gateway:
        named = {"name": args.gateway.name, "namespace": args.gateway.namespace or args.namespace}
        listener = {"sectionName": args.gateway.listener} if args.gateway.listener else {}
        router["gateway"] = {"refs": [{**named, **listener}]}
    service = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": deployment["metadata"],
        "spec": {
            # A name for people: the model is in the image, and nothing is fetched.
            "model": {"uri": f"s3://weighbridge/{release.digest}", "name": target},
            "storageInitializer": {"enabled": False},
            "replicas": spec.get("replicas", args.replicas),
            "rolloutStrategy": spec["strategy"]["rollingUpdate"],
            "labels": template["metadata"]["labels"],
            "annotations": template["metadata"]["annotations"],
            "template": _for_kserve(template["spec"]),
            "router": router,
        },
    }
    return [service]


def skypilot(target: str, args: KubernetesArgs, release: Release) -> Manifest:
    """Return SkyPilot's file of the service, for `sky serve up FILE`.

    Raises:
        BadInput: the Bento is not in the image, or nobody says which graphics card is asked for.
    """
    _require_whole_image(target, args, "SkyPilot", "other mounts are Kubernetes' alone")
    asked = args.resources
    if asked.gpus and not asked.gpu_model:
        raise BadInput(
            f"exporting {target} for SkyPilot",
            f"it asks for {asked.gpus} graphics cards, of no model",
            "name it in deploy.target.resources.gpu_model, such as H100",
        )
    cards = {"accelerators": f"{asked.gpu_model}:{asked.gpus}"} if asked.gpus else {}
    engine = variables("127.0.0.1", ENGINE_PORT, target, args.max_body_bytes)
    return {
        "name": names.target_name(target),
        "resources": {
            "image_id": f"docker:{filled_in(args.image, release)}",
            "ports": HTTP_PORT,
            "cpus": f"{math.ceil(amount(asked.cpu))}+",
            "memory": f"{math.ceil(amount(asked.memory) / (1 << 30))}+",
            **cards,
        },
        "service": {
            # It says 200 once a real answer has come: serving/request_watch.py.
            "readiness_probe": {
                "path": "/readyz",
                "initial_delay_seconds": args.load_seconds,
                "timeout_seconds": 15,
            },
            "replicas": args.least_replicas,
        },
        "envs": {**engine, "WEIGHBRIDGE_REVISION": release.version},
        # Asked for at the start, as in `sky serve up --secret HF_TOKEN`.
        "secrets": dict.fromkeys(sorted(args.secrets)),
        "run": shlex.join(["bentoml", *_OPTIONS, BENTO_IN_IMAGE]),
    }


def _require_whole_image(target: str, args: KubernetesArgs, whom: str, why: str) -> None:
    if args.model != "image":
        raise BadInput(
            f"exporting {target} for {whom}",
            f"the Bento comes by `{args.model}`, and {why}",
            "put it into the image: deploy.target.model `image`",
        )


def _as_rollout(
    deployment: Manifest, args: KubernetesArgs, steps: Sequence[int], step_seconds: float
) -> Manifest:
    name = deployment["metadata"]["name"]
    kept = {key: value for key, value in deployment["spec"].items() if key != "strategy"}
    pause = {"pause": {"duration": f"{max(math.ceil(step_seconds), 1)}s"}}
    canary: dict[str, Any] = {
        "stableService": name,
        "canaryService": f"{name}-canary",
        **deployment["spec"]["strategy"]["rollingUpdate"],
        # After the last step Argo goes to all of them by itself.
        "steps": [one for step in steps if step < _ALL for one in ({"setWeight": step}, pause)],
    }
    if args.gateway:
        route = {"httpRoute": name, "namespace": args.namespace}
        canary["trafficRouting"] = {"plugins": {"argoproj-labs/gatewayAPI": route}}
        # Replicas that still answer stay as long as they may.
        canary["scaleDownDelaySeconds"] = args.drain_seconds
    return {
        **deployment,
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "spec": {**kept, "progressDeadlineAbort": True, "strategy": {"canary": canary}},
    }


def _with_canary(route: Manifest, canary: str) -> Manifest:
    """Return a route whose one backend has another beside it, with no share yet."""
    (rule,) = route["spec"]["rules"]
    (stable,) = rule["backendRefs"]
    backends = [stable, {**stable, "name": canary, "weight": 0}]
    return {**route, "spec": {**route["spec"], "rules": [{**rule, "backendRefs": backends}]}}


def _for_kserve(pod: dict[str, Any]) -> dict[str, Any]:
    """Return a pod as KServe merges it into its own template, of which nothing may show through."""
    served, *others = pod["containers"]
    probes = {
        name: {**served[name], "httpGet": {**served[name]["httpGet"], "scheme": "HTTP"}}
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    # Theirs starts vLLM by a script of its own.
    start = {"command": [f"{BENTO_IN_IMAGE}/env/docker/entrypoint.sh"]}
    ours = {**served, **start, "name": KSERVE_CONTAINER, **probes}
    return {**pod, "containers": [ours, *others]}
