"""What is applied to a cluster, as a function of release and arguments."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.serving.targets.kubernetes.releases import (
    GATEWAY,
    RELEASE,
    VARIANTS,
    all_manifests,
    arguments,
)
from weighbridge.core.errors import BadInput
from weighbridge.serving.targets.kubernetes import names, rules
from weighbridge.serving.targets.kubernetes.access import role_manifests
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.manifests import (
    check_manifests,
    rolling_manifests,
    target_manifests,
    traffic_manifests,
)


def deployment(args: KubernetesArgs) -> dict[str, Any]:
    return next(one for one in all_manifests("demo", args, RELEASE) if one["kind"] == "Deployment")


def pod(args: KubernetesArgs) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(args)["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_manifest_passes_kubernetes_schema_and_our_rules(variant: str) -> None:
    pytest.importorskip(rules.SCHEMA_PACKAGE)
    args = arguments(**VARIANTS[variant])
    manifests = [*all_manifests("demo", args, RELEASE), *role_manifests("demo", args)]
    assert rules.schema_faults(manifests) == []
    assert rules.faults(manifests) == []
    rules.check(rolling_manifests("demo", args, RELEASE), "demo")
    check_manifests("demo", args)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_release_and_arguments_give_the_same_bytes(variant: str) -> None:
    first, second = (
        json.dumps(all_manifests("demo", arguments(**VARIANTS[variant]), RELEASE)) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(("lag", "drain", "stop"), [(5, 5, 1), (10, 300, 30), (60, 3600, 600)])
def test_a_pod_has_time_to_drain_and_then_to_end(lag: int, drain: int, stop: int) -> None:
    args = arguments(endpoints_lag=lag, drain_seconds=drain, stop_seconds=stop)
    assert pod(args)["terminationGracePeriodSeconds"] > drain + stop
    assert rules.faults(all_manifests("demo", args, RELEASE)) == []


def test_a_replica_may_not_end_before_its_clients_know() -> None:
    with pytest.raises(ValidationError, match="endpoints_lag 60 is longer than drain_seconds 30"):
        arguments(endpoints_lag=60, drain_seconds=30)


def test_nothing_new_is_taken_away_before_it_is_replaced_unless_there_is_no_room() -> None:
    def update(args: KubernetesArgs) -> dict[str, Any]:
        strategy: dict[str, Any] = deployment(args)["spec"]["strategy"]["rollingUpdate"]
        return strategy

    assert update(arguments()) == {"maxSurge": 1, "maxUnavailable": 0}
    assert update(arguments(surge=False)) == {"maxSurge": 0, "maxUnavailable": 1}


def test_an_autoscaled_deployment_keeps_the_replicas_that_it_has_when_applied_again() -> None:
    args = arguments(autoscale={"by": "hpa"}, replicas=3)
    assert "replicas" not in deployment(args)["spec"]


def test_the_startup_probe_lasts_as_long_as_the_load() -> None:
    probe = pod(arguments(load_seconds=1801))["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1801


def test_secrets_are_named_and_never_written_out() -> None:
    args = arguments(secrets={"HF_TOKEN": {"name": "hub", "key": "token"}})
    variables = {one["name"]: one for one in pod(args)["containers"][0]["env"]}
    assert variables["HF_TOKEN"] == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}},
    }


def test_processes_are_those_of_the_images_user_as_a_number() -> None:
    users = [pod(arguments(**VARIANTS[one]))["securityContext"]["runAsUser"] for one in VARIANTS]
    assert dict(zip(VARIANTS, users, strict=True)) == {
        **dict.fromkeys(VARIANTS, 1034),
        **dict.fromkeys(("init", "volume"), 10001),
    }
    assert pod(arguments(user_id=7))["securityContext"]["runAsUser"] == 7


def test_requests_equal_limits_for_all_that_a_replica_takes() -> None:
    resources = pod(arguments(resources={"gpus": 2}))["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["nvidia.com/gpu"] == "2"


def test_each_version_has_its_own_image() -> None:
    assert pod(arguments())["containers"][0]["image"] == "registry.example/demo:7"
    by_bento = arguments(image="r.example/{name}:{bento}")
    assert pod(by_bento)["containers"][0]["image"] == "r.example/demo:demo-q8-abc"
    with pytest.raises(BadInput, match=r"\{tag\} can't be filled in; what is filled in: \{name\}"):
        pod(arguments(image="r.example/demo:{tag}"))


def test_a_bento_comes_by_its_digest_from_the_store() -> None:
    fetching = pod(arguments(**VARIANTS["init"]))["initContainers"][0]
    assert RELEASE.digest in fetching["command"]
    assert {"name": "WEIGHBRIDGE_STORE", "value": "s3://models/x"} in fetching["env"]
    assert fetching["image"] == "registry.example/weighbridge-control:1"
    assert pod(arguments(**VARIANTS["init"]))["containers"][0]["args"] == [fetching["command"][-1]]
    # The keys of the store are for the fetching alone.
    assert "envFrom" in fetching
    assert "envFrom" not in pod(arguments(**VARIANTS["init"]))["containers"][0]


def test_a_gateway_shares_out_requests_and_lets_one_be_named() -> None:
    (route,) = traffic_manifests("demo", arguments(gateway=GATEWAY), {"7": 90, "8": 10, "9": 0})
    *pinned, shared = route["spec"]["rules"]
    assert [(one["name"], one["weight"]) for one in shared["backendRefs"]] == [
        ("demo-v7", 90),
        ("demo-v8", 10),
        ("demo-v9", 0),
    ]
    headers = [rule["matches"][0]["headers"][0]["value"] for rule in pinned]
    assert headers == ["7", "8", "9"]
    assert [rule["backendRefs"][0]["weight"] for rule in pinned] == [1, 1, 1]
    # Answers take minutes.
    assert shared["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_without_a_gateway_the_service_turns_at_once() -> None:
    args = arguments()
    (service,) = traffic_manifests("demo", args, {"7": 0, "8": 100})
    assert service["metadata"]["name"] == "demo"
    assert service["spec"]["selector"] == names.revision_selector("demo", "8")
    with pytest.raises(BadInput, match="7 and 8 are both to have some, and there is no gateway"):
        traffic_manifests("demo", args, {"7": 90, "8": 10})


def test_a_service_that_nothing_serves_selects_nothing() -> None:
    (service,) = traffic_manifests("demo", arguments(), {})
    assert service["spec"]["selector"]["weighbridge/revision"] == "none"


def test_only_known_namespaces_may_ask_and_pods_connect_to_nothing() -> None:
    (policy,) = target_manifests("demo", arguments(gateway=GATEWAY))
    allowed = [
        one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for one in policy["spec"]["ingress"][0]["from"]
    ]
    assert allowed == ["gateways", "models"]
    assert policy["spec"]["egress"] == []
    args = arguments(clients=["apps"], networks=["10.0.0.1/32"])
    assert target_manifests("demo", args)[0]["spec"]["ingress"][0]["from"][2:] == [
        {"ipBlock": {"cidr": "10.0.0.1/32"}}
    ]
    # A Service may be reached from outside the cluster.
    (open_to_all,) = target_manifests("demo", arguments())
    assert "from" not in open_to_all["spec"]["ingress"][0]
    (fetching,) = target_manifests("demo", arguments(**VARIANTS["init"]))
    assert {"port": 9000, "protocol": "TCP"} in fetching["spec"]["egress"][1]["ports"]


def test_the_role_is_of_one_namespace_and_names_what_it_allows() -> None:
    _, role, binding = role_manifests("demo", arguments(gateway=GATEWAY))
    assert (role["kind"], binding["kind"]) == ("Role", "RoleBinding")
    assert "httproutes" in [name for rule in role["rules"] for name in rule["resources"]]
    assert "secrets" not in [name for rule in role["rules"] for name in rule["resources"]]


def test_an_overlay_is_merged_deeply_lists_by_name_and_null_removes() -> None:
    overlay = [
        {
            "kind": "Deployment",
            "metadata": {"annotations": {"team": "search"}},
            "spec": {
                "template": {
                    "spec": {
                        "topologySpreadConstraints": None,
                        "containers": [
                            {"name": "bento", "env": [{"name": "OMP_NUM_THREADS", "value": "2"}]},
                            {"name": "proxy", "image": "registry.example/proxy:1"},
                        ],
                    }
                }
            },
        },
        {"kind": "Service", "metadata": {"name": "demo"}, "spec": {"type": "LoadBalancer"}},
    ]
    args = arguments(overlay=overlay)
    assert deployment(args)["metadata"]["annotations"] == {
        **names.revision_annotations(RELEASE),
        "team": "search",
    }
    spec = pod(args)
    assert "topologySpreadConstraints" not in spec
    assert [container["name"] for container in spec["containers"]] == ["bento", "proxy"]
    variables = [one["name"] for one in spec["containers"][0]["env"]]
    assert {"OMP_NUM_THREADS", "WEIGHBRIDGE_REVISION"} <= {*variables}
    own, front = [one for one in all_manifests("demo", args, RELEASE) if one["kind"] == "Service"]
    assert (own["spec"].get("type"), front["spec"]["type"]) == (None, "LoadBalancer")


def test_an_overlay_is_held_to_the_same_rules() -> None:
    grace = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 30}}}}
    args = arguments(overlay=[{"kind": "Deployment", **grace}])
    with pytest.raises(BadInput, match="raise terminationGracePeriodSeconds to 330 at least"):
        check_manifests("demo", args)


def test_an_overlay_for_what_is_not_made_is_refused() -> None:
    with pytest.raises(BadInput, match="there is no Ingress; what there is: NetworkPolicy"):
        check_manifests("demo", arguments(overlay=[{"kind": "Ingress"}]), RELEASE, "7")


def test_no_two_targets_or_revisions_share_a_name() -> None:
    pairs = [("demo", "7"), ("demo", "7.2"), ("demo-7", "2"), ("demo-v7", "2"), ("Demo", "7")]
    called = [names.revision_name(*pair) for pair in pairs]
    called += [names.target_name(target) for target in ("demo", "demo-v7", "Demo", "7", "a.b")]
    assert len({*called}) == len(called)


@pytest.mark.parametrize(
    "target", ["demo", "7", "Demo_7", "a.b", "a-", "-", "x" * 63, "Ü-ber", f"{'x' * 61}-v", "v7"]
)
def test_every_targets_name_becomes_one_that_a_service_may_have(target: str) -> None:
    for name in (names.target_name(target), names.revision_name(target, "1000000.2")):
        assert len(name) <= 63
        assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", name)


def test_connections_stay_open_longer_than_gateways_keep_them() -> None:
    args = pod(arguments())["containers"][0]["args"]
    assert int(args[args.index("--timeout-keep-alive") + 1]) > 3600


def test_the_page_shows_the_role_that_is_made() -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "kubernetes.md").read_text()
    shown = page.partition("## The Role")[2].partition("```yaml\n")[2].partition("```")[0]
    _, role, _ = role_manifests("demo", arguments())
    assert yaml.safe_load(shown)["rules"] == role["rules"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "one replica: a drained node waits"),
        ({"surge": False}, "one fewer while one is replaced, and none at all of one"),
        ({}, "no gateway: all requests go from one version to the next at once"),
        (VARIANTS["init"], "the Bento is a part of the 2Gi"),
        ({"gateway": GATEWAY}, "name its address in `networks`"),
        (VARIANTS["hpa"], "needs a metrics adapter"),
    ],
)
def test_what_follows_of_arguments_is_said(changed: dict[str, Any], says: str) -> None:
    assert says in "; ".join(arguments(**changed).remarks())


def test_arguments_of_which_nothing_unexpected_follows_are_passed_over() -> None:
    args = arguments(replicas=2, gateway=GATEWAY, networks=["10.0.0.1/32"])
    assert args.remarks() == []
