"""The pod in which a revision runs: containers, probes, how it is ended, what it may do."""

from typing import Any, Final

from weighbridge.core.container_layout import container_security, pod_security
from weighbridge.core.errors import BadInput
from weighbridge.serving.bento_container import KEEP_ALIVE_SECONDS
from weighbridge.serving.bento_process import variables
from weighbridge.serving.targets.base import Release
from weighbridge.serving.targets.kubernetes import names
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.names import Workload

ENGINE_PORT: Final = 3001
"""On the pod's loopback alone."""
CONTAINER: Final = "bento"
BENTO_IN_IMAGE: Final = "/home/bentoml/bento"
"""Where `bentoml containerize` puts a Bento."""
KEEP_ALIVE: Final = ("--timeout-keep-alive", str(KEEP_ALIVE_SECONDS))
_MOUNT: Final = "/bento"
_FETCHED: Final = f"{_MOUNT}/served"
_SCRATCH: Final = "/scratch"


def pod_template(args: KubernetesArgs, release: Release, workload: Workload) -> dict[str, Any]:
    """Return the pod template of a Deployment."""
    return {
        "metadata": {
            "labels": workload.labels,
            "annotations": {
                **names.revision_annotations(release),
                names.PRE_STOP_ANNOTATION: str(args.drain_seconds),
                names.STOP_ANNOTATION: str(args.stop_seconds),
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(workload.port),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": _pod_spec(args, release, workload),
    }


def filled_in(image: str, release: Release) -> str:
    """Return an image's name with what a recipe leaves to each release. Raises BadInput."""
    values = {
        "name": release.name,
        "version": release.version,
        # A tag of an image has no colon in it.
        "bento": release.bento.replace(":", "-"),
        "digest": release.digest.removeprefix("sha256:"),
    }
    try:
        return image.format_map(values)
    except (KeyError, ValueError, IndexError) as exc:
        wrong = f"{image} can't be filled in"
        known = ", ".join(f"{{{name}}}" for name in values)
        raise BadInput("naming an image", wrong, f"what is filled in: {known}") from exc


def _pod_spec(args: KubernetesArgs, release: Release, workload: Workload) -> dict[str, Any]:
    optional = {
        "serviceAccountName": args.service_account,
        "priorityClassName": args.priority_class,
        "runtimeClassName": args.runtime_class,
        "imagePullSecrets": [{"name": args.pull_secret}] if args.pull_secret else [],
        "nodeSelector": dict(args.node_selector),
        "tolerations": [dict(toleration) for toleration in args.tolerations],
        "initContainers": [_fetching(args, release)] if args.model == "init" else [],
    }
    return {
        "automountServiceAccountToken": False,
        # Else every Service of the namespace becomes an environment variable.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": args.grace_seconds,
        "securityContext": pod_security(args.user),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": workload.selector},
            }
        ],
        "containers": [_serving(args, release, workload)],
        "volumes": _volumes(args, release),
        **{field: value for field, value in optional.items() if value},
    }


def _serving(args: KubernetesArgs, release: Release, workload: Workload) -> dict[str, Any]:
    # Both images serve by themselves: a Bento's what it holds, an engine's what it is told.
    start = (
        ["serve", "--host", "0.0.0.0", "--port", str(workload.port), *KEEP_ALIVE]
        if args.model == "image"
        else [_bento_folder(args)]
    )
    return {
        "name": CONTAINER,
        "image": filled_in(args.image, release),
        "imagePullPolicy": args.pull_policy,
        "args": start,
        "ports": [{"name": "http", "containerPort": workload.port, "protocol": "TCP"}],
        "env": _environment(args, workload),
        "resources": _resources(args),
        **_probes(args),
        "lifecycle": {"preStop": {"exec": {"command": _pre_stop(args, workload)}}},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": _SCRATCH},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *_bento_mounts(args, read_only=True),
        ],
    }


def _fetching(args: KubernetesArgs, release: Release) -> dict[str, Any]:
    """Return the init container that fetches the Bento from the shared store."""
    assert args.store is not None  # the arguments' own check
    store = args.store
    variables_of_store = {
        "WEIGHBRIDGE_STORE": store.uri,
        # On the same volume: a file is there once, however it is reached.
        "WEIGHBRIDGE_HOME": f"{_MOUNT}/home",
        "WEIGHBRIDGE_CACHE": f"{_SCRATCH}/cache",
        "HOME": _SCRATCH,
        **({"AWS_ENDPOINT_URL": store.endpoint} if store.endpoint else {}),
    }
    keys = {"envFrom": [{"secretRef": {"name": store.secret}}]} if store.secret else {}
    return {
        "name": "fetch",
        "image": filled_in(store.image, release),
        "imagePullPolicy": args.pull_policy,
        "command": [
            *("python", "-m", "weighbridge.serving.targets.kubernetes.fetch"),
            *(release.digest, _FETCHED),
        ],
        "env": _listed(variables_of_store),
        **keys,
        # Of the pod's limits the largest counts: this one runs before the other.
        "resources": _resources(args, gpus=False),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "scratch", "mountPath": _SCRATCH},
            {"name": "tmp", "mountPath": "/tmp"},
            *_bento_mounts(args, read_only=False),
        ],
    }


def _environment(args: KubernetesArgs, workload: Workload) -> list[dict[str, Any]]:
    plain = {
        **variables("127.0.0.1", ENGINE_PORT, workload.target, args.max_body_bytes),
        "WEIGHBRIDGE_REVISION": workload.revision,
        "PORT": str(workload.port),
        # All that is written by itself: the root is read-only.
        "HOME": _SCRATCH,
        "BENTOML_HOME": f"{_SCRATCH}/bentoml",
        "WEIGHBRIDGE_HOME": f"{_SCRATCH}/home",
        "WEIGHBRIDGE_CACHE": f"{_SCRATCH}/cache",
        "XDG_CACHE_HOME": f"{_SCRATCH}/cache",
    }
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": held.name, "key": held.key}}}
        for name, held in sorted(args.secrets.items())
    ]
    return [*_listed(plain), *secret]


def _listed(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in sorted(environment.items())]


def _resources(args: KubernetesArgs, *, gpus: bool = True) -> dict[str, Any]:
    asked = args.resources
    amounts = {
        "cpu": asked.cpu,
        "memory": asked.memory,
        "ephemeral-storage": asked.disk,
        **({asked.gpu_resource: str(asked.gpus)} if gpus and asked.gpus else {}),
    }
    return {"requests": amounts, "limits": dict(amounts)}


def _probes(args: KubernetesArgs) -> dict[str, Any]:
    # `/readyz` says 200 once a real answer has come, lately or now; `/livez` asks the engine how
    # it is, and answers while it is busy.
    answered = {"path": "/readyz", "port": "http"}
    return {
        # Often: a version that could serve waits for nothing else.
        "startupProbe": {
            "httpGet": answered,
            "periodSeconds": 1,
            "timeoutSeconds": 10,
            "failureThreshold": args.load_seconds,
        },
        "readinessProbe": {
            "httpGet": dict(answered),
            "periodSeconds": 5,
            "timeoutSeconds": 10,
            "failureThreshold": 3,
        },
        # Modest: what is only slow must not be killed with all that it is answering.
        "livenessProbe": {
            "httpGet": {"path": "/livez", "port": "http"},
            "periodSeconds": 20,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
        },
    }


def _pre_stop(args: KubernetesArgs, workload: Workload) -> list[str]:
    """Return the command that ends once nothing is under way any more."""
    waits = f"{_bento_folder(args)}/src/weighbridge/serving/pod_drain.py"
    url = f"http://127.0.0.1:{workload.port}"
    # A Bento of an older release has no such file: it is given all its time.
    return [
        *("/bin/sh", "-c"),
        f"if [ -f {waits} ]; then exec python -I {waits} {url} "
        f"--least {args.endpoints_lag} --most {args.drain_seconds}; "
        f"else exec sleep {args.drain_seconds}; fi",
    ]


def _bento_folder(args: KubernetesArgs) -> str:
    return {"image": BENTO_IN_IMAGE, "init": _FETCHED, "oci_volume": _MOUNT}[args.model]


def _bento_mounts(args: KubernetesArgs, *, read_only: bool) -> list[dict[str, Any]]:
    if args.model == "image":
        return []
    return [{"name": "bento", "mountPath": _MOUNT, **({"readOnly": True} if read_only else {})}]


def _volumes(args: KubernetesArgs, release: Release) -> list[dict[str, Any]]:
    shared_memory = {"medium": "Memory", "sizeLimit": args.resources.shared_memory}
    scratch = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": shared_memory},
    ]
    if args.model == "oci_volume":
        reference = filled_in(args.model_image, release)
        source = {"reference": reference, "pullPolicy": args.pull_policy}
        return [*scratch, {"name": "bento", "image": source}]
    if args.model == "init":
        return [*scratch, {"name": "bento", "emptyDir": {}}]
    return scratch
