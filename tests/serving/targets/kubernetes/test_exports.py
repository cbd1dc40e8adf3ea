"""What KServe, Argo Rollouts and SkyPilot are given of the same release."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.serving.targets.kubernetes.releases import GATEWAY, RELEASE, VARIANTS, arguments
from weighbridge.core.errors import BadInput
from weighbridge.serving.targets.kubernetes import exports, rules
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs, amount
from weighbridge.serving.targets.kubernetes.manifests import rolling_manifests
from weighbridge.serving.targets.kubernetes.schemas import SkyTask

STEPS = (10, 50, 100)


def rollouts(args: KubernetesArgs) -> list[dict[str, Any]]:
    return exports.argo_rollouts("demo", args, RELEASE, STEPS, 5.0)


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("variant", VARIANTS)
def test_argo_rollouts_gets_what_passes_its_schema_and_our_rules(variant: str) -> None:
    rules.check(rollouts(arguments(**VARIANTS[variant])), "demo")


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"init", "volume"}))
def test_kserve_gets_what_passes_its_schema(variant: str) -> None:
    rules.check(exports.kserve("demo", arguments(**VARIANTS[variant]), RELEASE), "demo")


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - {"init", "volume", "cards"}))
def test_skypilot_gets_what_passes_its_schema(variant: str) -> None:
    SkyTask.model_validate(exports.skypilot("demo", arguments(**VARIANTS[variant]), RELEASE))


def test_argo_goes_by_the_steps_of_the_recipe_and_waits_at_each() -> None:
    rollout = next(one for one in rollouts(arguments()) if one["kind"] == "Rollout")
    assert rollout["spec"]["strategy"]["canary"]["steps"] == [
        {"setWeight": 10},
        {"pause": {"duration": "5s"}},
        {"setWeight": 50},
        {"pause": {"duration": "5s"}},
    ]


def test_argo_shifts_the_route_between_two_services_where_there_is_a_gateway() -> None:
    manifests = rollouts(arguments(gateway=GATEWAY, autoscale={"by": "hpa"}))
    by_kind = {one["kind"]: one for one in manifests}
    canary = by_kind["Rollout"]["spec"]["strategy"]["canary"]
    services = [one["metadata"]["name"] for one in manifests if one["kind"] == "Service"]
    assert services == [canary["stableService"], canary["canaryService"]]
    backends = by_kind["HTTPRoute"]["spec"]["rules"][0]["backendRefs"]
    assert [(one["name"], one["weight"]) for one in backends] == [
        (canary["stableService"], 100),
        (canary["canaryService"], 0),
    ]
    plugin = canary["trafficRouting"]["plugins"]["argoproj-labs/gatewayAPI"]
    assert plugin["httpRoute"] == by_kind["HTTPRoute"]["metadata"]["name"]
    assert by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["kind"] == "Rollout"


def test_each_runs_the_very_pod_that_we_do() -> None:
    args = arguments()
    ours = pod_of(
        next(one for one in rolling_manifests("demo", args, RELEASE) if one["kind"] == "Deployment")
    )
    assert pod_of(next(one for one in rollouts(args) if one["kind"] == "Rollout")) == ours
    (service,) = exports.kserve("demo", args, RELEASE)
    (served,) = service["spec"]["template"]["containers"]
    assert (served["name"], served["ports"][0]["containerPort"]) == ("main", 8000)
    assert "8000" in served["args"]
    assert served["command"] == ["/home/bentoml/bento/env/docker/entrypoint.sh"]
    assert "http://127.0.0.1:8000 " in served["lifecycle"]["preStop"]["exec"]["command"][2]
    # KServe's own probes ask by https: none of theirs may be left over.
    assert served["readinessProbe"]["httpGet"]["scheme"] == "HTTP"


def test_skypilot_asks_for_secrets_and_takes_none_along() -> None:
    task = exports.skypilot("demo", arguments(**VARIANTS["all"]), RELEASE)
    assert task["secrets"] == {"HF_TOKEN": None}
    assert "HF_TOKEN" not in task["envs"]


def test_skypilot_is_told_which_card() -> None:
    with pytest.raises(BadInput, match="2 graphics cards, of no model"):
        exports.skypilot("demo", arguments(resources={"gpus": 2}), RELEASE)
    args = arguments(resources={"gpus": 2, "gpu_model": "H100", "memory": "1500Mi", "cpu": "500m"})
    resources = exports.skypilot("demo", args, RELEASE)["resources"]
    assert resources["accelerators"] == "H100:2"
    assert (resources["cpus"], resources["memory"]) == ("1+", "2+")


@pytest.mark.parametrize("export", [exports.kserve, exports.skypilot])
def test_a_bento_outside_the_image_is_refused_where_it_could_not_be_had(export: Any) -> None:
    with pytest.raises(BadInput, match=r"put it into the image: deploy\.target\.model `image`"):
        export("demo", arguments(**VARIANTS["init"]), RELEASE)


def test_a_misspelt_field_of_a_custom_resource_is_refused() -> None:
    overlay = [{"kind": "HTTPRoute", "spec": {"hostnamez": ["x"]}}]
    with pytest.raises(BadInput, match=r"HTTPRoute demo: spec\.hostnamez: Extra inputs"):
        rules.check(
            rolling_manifests("demo", arguments(gateway=GATEWAY, overlay=overlay), RELEASE), "demo"
        )


def test_amounts_are_read_as_kubernetes_reads_them() -> None:
    assert [amount(text) for text in ("2", "500m", "1.5k", "2Ki", "1Gi")] == [
        *(2, 0.5, 1500, 2048, 1 << 30)
    ]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": "init"}, "name it in `store.uri`"),
        ({"model": "oci_volume"}, "in `model_image`"),
        ({"autoscale": {"by": "keda"}}, "address of Prometheus"),
        ({"autoscale": {"min_replicas": 3, "max_replicas": 2}}, "below min_replicas"),
        ({"overlay": [{"spec": {}}]}, "names the `kind`"),
        ({"secrets": {"HF_TOKEN": "hf_x"}}, "secrets.HF_TOKEN"),
        ({"image": "a b"}, "image"),
        ({"namespace": "Models"}, "namespace"),
        ({"networks": ["10.0.0.300"]}, "networks"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused_with_the_recipe(
    wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        arguments(**wrong)


def test_an_overlay_for_what_is_not_there_is_refused() -> None:
    overlay = [{"kind": "HTTPRoute", "spec": {"hostnames": ["x"]}}]
    with pytest.raises(BadInput, match="there is no HTTPRoute; what there is: NetworkPolicy"):
        rolling_manifests("demo", arguments(overlay=overlay), RELEASE)
