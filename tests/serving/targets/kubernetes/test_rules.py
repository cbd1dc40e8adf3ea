"""What Kubernetes would take and requests would be lost by, or a door opened."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import yaml

from weighbridge.core.errors import BadInput
from weighbridge.serving.targets.kubernetes import rules

GOOD = """
apiVersion: v1
kind: Service
metadata: {name: demo}
spec: {selector: {app: demo}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: demo}
spec: {maxUnavailable: 0, selector: {matchLabels: {app: demo}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: demo}
spec:
  replicas: 1
  progressDeadlineSeconds: 60
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: demo}}
  template:
    metadata: {labels: {app: demo, version: "1"}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 60
      securityContext:
        {runAsNonRoot: true, runAsUser: 1034, fsGroup: 1034, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: bento
        image: localhost/demo:1
        imagePullPolicy: Never
        env: [{name: V, value: "1"}]
        ports: [{name: http, containerPort: 3000}]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
        startupProbe: {httpGet: {path: /readyz, port: http}, failureThreshold: 12}
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 2}
        livenessProbe: {httpGet: {path: /livez, port: http}, periodSeconds: 10}
        lifecycle: {preStop: {sleep: {seconds: 5}}}
        resources: {requests: {cpu: 200m, memory: 400Mi}, limits: {memory: 2Gi}}
"""
SERVICE, BUDGET, DEPLOYMENT = yaml.safe_load_all(GOOD)
Change = Callable[[dict[str, Any], dict[str, Any]], object]


def changed(change: Change) -> list[dict[str, Any]]:
    """Return the good manifests with the pod and its container changed."""
    deployment = deepcopy(DEPLOYMENT)
    pod = deployment["spec"]["template"]["spec"]
    change(pod, pod["containers"][0])
    return [SERVICE, BUDGET, deployment]


def test_a_good_deployment_passes() -> None:
    assert rules.schema_faults([SERVICE, BUDGET, DEPLOYMENT]) == []
    assert rules.faults([SERVICE, BUDGET, DEPLOYMENT]) == []


def test_a_pre_stop_that_outlasts_the_grace_passes_the_schema_and_not_us() -> None:
    manifests = changed(
        lambda _, container: container["lifecycle"]["preStop"]["sleep"].update(seconds=500)
    )
    assert rules.schema_faults(manifests) == []
    assert rules.faults(manifests) == [
        "Deployment demo: container bento: its preStop takes up to 500 s and it then ends within "
        "1 s, but it is killed 60 s after the beginning; raise terminationGracePeriodSeconds to "
        "501 at least, or shorten preStop"
    ]


def test_a_misspelt_field_is_refused_with_its_place() -> None:
    pytest.importorskip(rules.SCHEMA_PACKAGE)
    deployment = deepcopy(DEPLOYMENT)
    deployment["spec"]["replikas"] = deployment["spec"].pop("replicas")
    with pytest.raises(BadInput, match=r"Deployment demo: spec: .*'replikas' was unexpected"):
        rules.check([SERVICE, BUDGET, deployment], "demo")
    # Where Kubernetes' schema is not there to be asked, too.
    (fault,) = rules.faults([SERVICE, BUDGET, deployment])
    assert "spec.replicas is missing" in fault


POD_FAULTS: dict[str, tuple[Change, str]] = {
    "no preStop": (lambda _, c: c.pop("lifecycle"), "it has no preStop"),
    "short preStop": (
        lambda _, c: c["lifecycle"]["preStop"]["sleep"].update(seconds=1),
        "clients go on sending",
    ),
    "unknown preStop": (
        lambda _, c: c["lifecycle"].update(preStop={"exec": {"command": ["wait"]}}),
        "nobody can tell how long its preStop takes",
    ),
    "no grace": (
        lambda p, c: (
            p.pop("terminationGracePeriodSeconds"),
            c["lifecycle"]["preStop"]["sleep"].update(seconds=30),
        ),
        "killed 30 s after",
    ),
    "no readiness": (lambda _, c: c.pop("readinessProbe"), "no readinessProbe"),
    "no startup": (lambda _, c: c.pop("startupProbe"), "no startupProbe"),
    "user by name": (lambda p, _: p["securityContext"].pop("runAsUser"), "give a number"),
    "root": (lambda p, _: p["securityContext"].update(runAsNonRoot=False), "may run as root"),
    "token": (lambda p, _: p.pop("automountServiceAccountToken"), "a token of the cluster's API"),
    "seccomp": (lambda p, _: p["securityContext"].pop("seccompProfile"), "any system call"),
    "rights": (lambda _, c: c["securityContext"].pop("capabilities"), "drop ALL"),
    "escalation": (
        lambda _, c: c["securityContext"].pop("allowPrivilegeEscalation"),
        "may gain rights",
    ),
    "host": (lambda p, _: p.update(hostNetwork=True), "hostNetwork"),
    "folder of the node": (
        lambda p, _: p.update(volumes=[{"name": "x", "hostPath": {"path": "/"}}]),
        "folder of the node",
    ),
    "moving tag": (lambda _, c: c.update(image="r.example:5000/demo"), "another image tomorrow"),
    "latest": (lambda _, c: c.update(image="demo:latest"), "another image tomorrow"),
    "written secret": (
        lambda _, c: c["env"].append({"name": "HF_TOKEN", "value": "hf_x"}),
        "HF_TOKEN is written out",
    ),
    "no volume": (
        lambda _, c: c.update(volumeMounts=[{"name": "x", "mountPath": "/x"}]),
        "no volume of the pod",
    ),
    "all memory": (lambda _, c: c["resources"]["limits"].clear(), "resources.limits.memory"),
    "unknown size": (lambda _, c: c["resources"].pop("requests"), "resources.requests"),
    "other cards": (
        lambda _, c: (
            c["resources"]["limits"].update({"nvidia.com/gpu": "2"})
            or c["resources"]["requests"].update({"nvidia.com/gpu": "1"})
        ),
        "other nvidia.com/gpu than it may take",
    ),
}


@pytest.mark.parametrize("name", POD_FAULTS)
def test_each_fault_of_a_pod_is_one_line(name: str) -> None:
    change, says = POD_FAULTS[name]
    (fault,) = rules.faults(changed(change))
    assert fault.startswith("Deployment demo: ")
    assert says in fault
    assert "; " in fault
    assert "\n" not in fault


def test_an_image_by_its_digest_moves_no_more_than_one_by_its_tag() -> None:
    for pinned in ({"image": "r.example:5000/demo:1"}, {"image": "r.example/demo@sha256:00"}):
        manifests = changed(lambda _, container: None)
        manifests[2]["spec"]["template"]["spec"]["containers"][0].update(pinned)
        assert rules.faults(manifests) == []


@pytest.mark.parametrize(
    ("at", "change", "says"),
    [
        (0, {"selector": {"app": "other"}}, "every request fails"),
        (0, {"ports": [{"port": 80, "targetPort": "web"}]}, "targetPort web is no port"),
        (1, {"selector": {"matchLabels": {"app": "other"}}}, "takes all of them at once"),
        (2, {"selector": {"matchLabels": {"app": "other"}}}, "the labels of its own pods"),
        (2, {"strategy": {"type": "Recreate"}}, "ends every replica before"),
        (2, {"strategy": {}}, "takes replicas away before others answer"),
        (2, {"replicas": "one"}, "give a whole number"),
    ],
)
def test_objects_that_do_not_fit_together_are_refused(
    at: int, change: dict[str, Any], says: str
) -> None:
    manifests = [deepcopy(one) for one in (SERVICE, BUDGET, DEPLOYMENT)]
    manifests[at]["spec"].update(change)
    (fault,) = rules.faults(manifests)
    assert says in fault


def test_one_fewer_first_is_taken_where_there_is_no_room_for_one_more() -> None:
    deployment = deepcopy(DEPLOYMENT)
    deployment["spec"]["strategy"]["rollingUpdate"] = {"maxUnavailable": 1, "maxSurge": 0}
    assert rules.faults([SERVICE, BUDGET, deployment]) == []


def test_the_same_object_twice_is_refused() -> None:
    (fault,) = rules.faults([SERVICE, SERVICE, BUDGET, DEPLOYMENT])
    assert fault.startswith("Service demo: it is there 2 times")


def test_a_role_names_what_it_allows() -> None:
    every = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "all"},
        "rules": [every],
    }
    (fault,) = rules.faults([role])
    assert fault.startswith("Role all: it allows everything")


def test_what_is_no_manifest_at_all_is_said() -> None:
    (fault,) = rules.faults([{"kind": "Service"}])
    assert fault.startswith("object 1: it lacks")


def test_one_fault_is_one_line_and_several_are_counted() -> None:
    deployment = deepcopy(DEPLOYMENT)
    deployment["spec"]["strategy"] = {"type": "Recreate"}
    with pytest.raises(BadInput) as one:
        rules.check([SERVICE, BUDGET, deployment], "demo")
    assert "\n" not in str(one.value)
    with pytest.raises(BadInput, match=r"2 faults:\n  Service demo: .*\n  Deployment demo: "):
        rules.check([SERVICE, SERVICE, BUDGET, deployment], "demo")
