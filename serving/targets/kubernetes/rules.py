"""What would lose requests or open a door although Kubernetes' schema lets it pass.

The rules read manifests and nothing else, so they hold for ours, for ours with a recipe's overlay,
and for anybody's. Kubernetes' own schema is asked beside them where `kubernetes-validate` is
installed: it finds misspelt fields, and knows nothing of what belongs together.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from pydantic import ValidationError

from weighbridge.core.errors import BadInput
from weighbridge.serving.targets.kubernetes.names import PRE_STOP_ANNOTATION, STOP_ANNOTATION
from weighbridge.serving.targets.kubernetes.schemas import CUSTOM, pod_spec_in

SCHEMA_VERSION: Final = "1.36"
"""Of Kubernetes, that manifests are held against."""
SCHEMA_PACKAGE: Final = "kubernetes_validate"
DEFAULT_GRACE: Final = 30
"""Seconds that Kubernetes waits where a pod says nothing."""
LEAST_PRE_STOP: Final = 5
"""Seconds for which clients have been seen to send requests to a pod that ends."""
_LEAST_STOP: Final = 1
_SECRET_NAME: Final = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.I)
_SERVERS: Final = frozenset({"Deployment", "Rollout"})
_SCALERS: Final = frozenset({"HorizontalPodAutoscaler", "ScaledObject"})
Manifest = Mapping[str, Any]


def check(manifests: Sequence[Manifest], source: str) -> None:
    """Refuse manifests with a fault. Raises BadInput, with a line for each fault."""
    # What the schema refuses may have any shape: the rules read what it lets pass.
    if wrong := schema_faults(manifests) or faults(manifests):
        counted = "" if len(wrong) == 1 else f"{len(wrong)} faults:\n  "
        raise BadInput(f"checking the manifests of {source}", counted + "\n  ".join(wrong))


def has_schemas() -> bool:
    """Whether Kubernetes' own schemas are here to be asked."""
    return find_spec(SCHEMA_PACKAGE) is not None


def schema_faults(manifests: Sequence[Manifest]) -> list[str]:
    """Return what the schemas refuse, a line each.

    Custom resources that we write are held against our own; others are passed over, and so is
    everything else where Kubernetes' schemas are missing.
    """
    return [
        f"{_called(manifest)}: {where}: {message}; correct this field"
        for manifest in manifests
        for where, message in _refusals(manifest)
    ]


def _refusals(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield each place that a schema refuses, and what it says."""
    schema = CUSTOM.get((str(manifest.get("apiVersion")), str(manifest.get("kind"))))
    if schema is None:
        yield from _refused_by_kubernetes(manifest)
        return
    try:
        schema.model_validate(manifest)
    except ValidationError as exc:
        for error in exc.errors():
            yield ".".join(map(str, error["loc"])), error["msg"]
        return
    if pod := pod_spec_in(manifest):
        yield from _refused_by_kubernetes(
            {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod}
        )


def _refused_by_kubernetes(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if not has_schemas():
        return
    schemas = import_module(SCHEMA_PACKAGE)
    try:
        schemas.validate(dict(manifest), SCHEMA_VERSION, strict=True)
    except schemas.SchemaNotFoundError:
        return
    except schemas.ValidationError as exc:
        yield ".".join(map(str, exc.path)) or "at its top", exc.message


def faults(manifests: Sequence[Manifest]) -> list[str]:
    """Return every fault: which object, what is wrong, what to do; none where all is well."""
    if unnamed := [f"object {at}: {text}" for at, text in _unnamed(manifests)]:
        return unnamed
    found = [*_twice(manifests), *_points_nowhere(manifests)]
    for manifest in manifests:
        if manifest["kind"] in _SERVERS:
            checks = (*_of_server(manifest, manifests), *_of_pod(_template(manifest)))
            found += [f"{_called(manifest)}: {text}" for text in checks]
        if manifest["kind"] in ("Role", "ClusterRole", "ClusterRoleBinding"):
            found += [f"{_called(manifest)}: {text}" for text in _of_role(manifest)]
    return found


def _unnamed(manifests: Sequence[Manifest]) -> Iterator[tuple[int, str]]:
    for number, manifest in enumerate(manifests, 1):
        metadata = manifest.get("metadata")
        named = isinstance(metadata, Mapping) and metadata.get("name")
        if not (manifest.get("apiVersion") and manifest.get("kind") and named):
            yield number, "it lacks apiVersion, kind or metadata.name; give all three"


def _twice(manifests: Sequence[Manifest]) -> Iterator[str]:
    counted = Counter(map(_called, manifests))
    for name, times in counted.items():
        if times > 1:
            yield f"{name}: it is there {times} times, and the last one wins; keep one"


def _points_nowhere(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Yield what selects pods, or scales something, that is not among the manifests."""
    servers = [one for one in manifests if one["kind"] in _SERVERS]
    for manifest in manifests if servers else ():
        kind, spec = manifest["kind"], manifest.get("spec") or {}
        if kind == "Service" and spec.get("selector"):
            yield from _of_service(manifest, servers)
        if kind == "PodDisruptionBudget" and not _selected(
            (spec.get("selector") or {}).get("matchLabels"), servers
        ):
            yield (
                f"{_called(manifest)}: its selector matches no pod, so a drained node takes all of "
                "them at once; select the labels of the pod template"
            )
        if kind in _SCALERS:
            named = (spec.get("scaleTargetRef") or {}).get("name")
            if named not in [server["metadata"]["name"] for server in servers]:
                yield (
                    f"{_called(manifest)}: it scales {named}, which is not there; name the "
                    "Deployment in spec.scaleTargetRef"
                )


def _of_service(manifest: Manifest, servers: Sequence[Manifest]) -> Iterator[str]:
    chosen = _selected(manifest["spec"]["selector"], servers)
    if not chosen:
        yield (
            f"{_called(manifest)}: its selector matches no pod, so every request fails; select the "
            "labels of the pod template"
        )
        return
    ports = {
        port
        for server in chosen
        for container in _containers(_template(server))
        for declared in container.get("ports") or ()
        for port in (declared.get("name"), declared.get("containerPort"))
    }
    for port in manifest["spec"].get("ports") or ():
        wanted = port.get("targetPort", port.get("port"))
        if wanted not in ports:
            yield (
                f"{_called(manifest)}: its targetPort {wanted} is no port of the pods it selects; "
                "give the name of a containerPort"
            )


def _of_server(manifest: Manifest, manifests: Sequence[Manifest]) -> Iterator[str]:
    spec = manifest.get("spec") or {}
    labels = _labels(manifest)
    selected = (spec.get("selector") or {}).get("matchLabels") or {}
    if not selected or not selected.items() <= labels.items():
        yield (
            "its selector does not match the labels of its own pods; make "
            "spec.selector.matchLabels a part of spec.template.metadata.labels"
        )
    replicas = spec.get("replicas")
    if replicas is None and not _is_scaled(manifest, manifests):
        yield (
            "spec.replicas is missing, and nothing scales it; give a number, or an autoscaler that "
            "names it"
        )
    elif replicas is not None and (type(replicas) is not int or replicas < 0):
        yield f"spec.replicas is {replicas!r}; give a whole number"
    if manifest["kind"] == "Deployment":
        yield from _of_strategy(spec.get("strategy") or {})


def _of_strategy(strategy: Mapping[str, Any]) -> Iterator[str]:
    if strategy.get("type") == "Recreate":
        yield (
            "strategy Recreate ends every replica before the next one starts; take RollingUpdate "
            "with maxUnavailable 0 and maxSurge 1"
        )
        return
    update = strategy.get("rollingUpdate") or {}
    # A quarter is Kubernetes' own.
    unavailable = update.get("maxUnavailable", "25%")
    if unavailable not in (0, "0%") and update.get("maxSurge", "25%") not in (0, "0%"):
        yield (
            f"maxUnavailable {unavailable} takes replicas away before others answer; give 0 with "
            "maxSurge 1, or 1 with maxSurge 0 where there is no room for one more"
        )


def _of_pod(template: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a pod template."""
    spec = template.get("spec") or {}
    containers = _containers(template)
    if not containers:
        yield "spec.template.spec.containers is empty; give the container that serves"
        return
    yield from _of_end(template, containers)
    yield from _of_rights(spec)
    volumes = {volume.get("name") for volume in spec.get("volumes") or ()}
    for container in (*(spec.get("initContainers") or ()), *containers):
        for text in _of_container(container, spec, volumes):
            yield f"container {container.get('name')}: {text}"
    for container in containers:
        for text in _of_probes(container):
            yield f"container {container.get('name')}: {text}"


def _of_end(template: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what cuts off requests when a pod ends."""
    notes = (template.get("metadata") or {}).get("annotations") or {}
    spec = template.get("spec") or {}
    grace = _seconds(spec.get("terminationGracePeriodSeconds"), DEFAULT_GRACE)
    stop = _seconds(notes.get(STOP_ANNOTATION), _LEAST_STOP)
    serving = [container for container in containers if container.get("ports")]
    for container in serving or containers[:1]:
        name = f"container {container.get('name')}"
        handler = (container.get("lifecycle") or {}).get("preStop") or {}
        if not handler:
            yield (
                f"{name}: it has no preStop, so it ends while clients still send to it; have it "
                "wait until they have learned of its end and nothing is under way"
            )
            continue
        said = (handler.get("sleep") or {}).get("seconds", notes.get(PRE_STOP_ANNOTATION))
        pre_stop = _seconds(said, -1)
        if pre_stop < 0:
            yield (
                f"{name}: nobody can tell how long its preStop takes; say the most in the pod's "
                f"annotation {PRE_STOP_ANNOTATION}"
            )
        elif pre_stop < LEAST_PRE_STOP:
            yield (
                f"{name}: its preStop takes {pre_stop} s, and clients go on sending to it for "
                f"longer; give {LEAST_PRE_STOP} s at least"
            )
        elif grace < pre_stop + stop:
            yield (
                f"{name}: its preStop takes up to {pre_stop} s and it then ends within {stop} s, "
                f"but it is killed {grace} s after the beginning; raise "
                f"terminationGracePeriodSeconds to {pre_stop + stop} at least, or shorten preStop"
            )


def _of_probes(container: Mapping[str, Any]) -> Iterator[str]:
    if not container.get("ports"):
        return
    if not container.get("readinessProbe"):
        yield (
            "it has no readinessProbe, so it gets requests before it can answer; ask it for an "
            "answer"
        )
    if container.get("livenessProbe") and not container.get("startupProbe"):
        yield (
            "it has a livenessProbe and no startupProbe, so a long load is taken for a hang; give "
            "a startupProbe as long as the longest load"
        )


def _of_rights(spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a pod may do and need not."""
    if spec.get("automountServiceAccountToken") is not False:
        yield (
            "its pods carry a token of the cluster's API, which they need for nothing; set "
            "automountServiceAccountToken to false"
        )
    for shared in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(shared):
            yield f"{shared} lets its pods at the node; take it out"
    for volume in spec.get("volumes") or ():
        if "hostPath" in volume:
            yield (
                f"volume {volume.get('name')} is a folder of the node, so pods of other nodes "
                "differ; take an emptyDir, an image or a claim"
            )


def _of_container(
    container: Mapping[str, Any], spec: Mapping[str, Any], volumes: set[Any]
) -> Iterator[str]:
    pod, own = spec.get("securityContext") or {}, container.get("securityContext") or {}
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "it may run as root; set runAsNonRoot to true"
    user = own.get("runAsUser", pod.get("runAsUser"))
    if type(user) is not int or user == 0:
        yield (
            "kubelet can't tell that its user is not root: an image names users by name; give a "
            "number in runAsUser"
        )
    if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
        yield "it may gain rights; set allowPrivilegeEscalation to false"
    if "ALL" not in ((own.get("capabilities") or {}).get("drop") or ()):
        yield "it keeps capabilities of root; drop ALL"
    seccomp = own.get("seccompProfile") or pod.get("seccompProfile") or {}
    if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "it may make any system call; set seccompProfile to RuntimeDefault"
    yield from _of_image(str(container.get("image", "")))
    for variable in container.get("env") or ():
        if variable.get("value") and _SECRET_NAME.search(str(variable.get("name"))):
            yield (
                f"{variable['name']} is written out for all to read; name a Secret in "
                "valueFrom.secretKeyRef"
            )
    for mount in container.get("volumeMounts") or ():
        if mount.get("name") not in volumes:
            yield f"it mounts {mount.get('name')}, which is no volume of the pod; add the volume"
    yield from _of_resources(container.get("resources") or {})


def _of_image(image: str) -> Iterator[str]:
    tag = image.rpartition("/")[2].partition(":")[2]
    if not image:
        yield "it has no image; name one"
    elif "@" not in image and tag in ("", "latest"):
        yield f"{image} may be another image tomorrow; give a tag of one version, or a digest"


def _of_resources(resources: Mapping[str, Any]) -> Iterator[str]:
    asked, most = resources.get("requests") or {}, resources.get("limits") or {}
    if "memory" not in most:
        yield "it may take all memory of its node; give resources.limits.memory"
    if not {"cpu", "memory"} <= {*asked}:
        yield "the scheduler does not know what it takes; give resources.requests of cpu and memory"
    for name in sorted({*asked, *most}):
        # Whole devices, which have a domain in their name: half of one can't be had.
        if "/" in name and asked.get(name, most.get(name)) != most.get(name):
            yield f"it asks for other {name} than it may take; make request and limit the same"


def _of_role(manifest: Manifest) -> Iterator[str]:
    if manifest["kind"] != "Role":
        yield "it reaches beyond the namespace; take a Role and a RoleBinding"
    for rule in manifest.get("rules") or ():
        if "*" in (*rule.get("verbs", ()), *rule.get("resources", ()), *rule.get("apiGroups", ())):
            yield "it allows everything (*) of something; name verbs, resources and groups"


def _seconds(value: Any, otherwise: int) -> int:
    """Return whole seconds, which an annotation holds as text; else what is given for nothing."""
    return int(value) if re.fullmatch(r"\d+", str(value)) else otherwise


def _called(manifest: Manifest) -> str:
    name = (manifest.get("metadata") or {}).get("name", "")
    return f"{manifest.get('kind', 'object')} {name}".rstrip()


def _template(manifest: Manifest) -> Mapping[str, Any]:
    return (manifest.get("spec") or {}).get("template") or {}


def _labels(manifest: Manifest) -> Mapping[str, Any]:
    return (_template(manifest).get("metadata") or {}).get("labels") or {}


def _containers(template: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (template.get("spec") or {}).get("containers") or ()


def _selected(selector: Mapping[str, Any] | None, servers: Sequence[Manifest]) -> list[Manifest]:
    wanted = (selector or {}).items()
    return [server for server in servers if wanted and wanted <= _labels(server).items()]


def _is_scaled(manifest: Manifest, manifests: Sequence[Manifest]) -> bool:
    return any(
        one["kind"] in _SCALERS
        and ((one.get("spec") or {}).get("scaleTargetRef") or {}).get("name")
        == manifest["metadata"]["name"]
        for one in manifests
    )
