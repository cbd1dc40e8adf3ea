"""Target `kubernetes`: it keeps what every target promises, and says what a cluster lacks."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab import Lab, release
from weighbridge.conformance.kubernetes_api.cluster import NAMESPACE
from weighbridge.conformance.kubernetes_api.store import Key
from weighbridge.conformance.target_checks import check_target
from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.rollout.deploy_args import DeployArgs
from weighbridge.serving.targets.kubernetes import api
from weighbridge.serving.targets.kubernetes.access import role_manifests

GATEWAY = {"gateway": {"name": "edge", "hostname": "models.example.com"}}


@pytest.mark.parametrize("shop", ["stand-in", "cluster"], indirect=True)
@pytest.mark.parametrize("address", ["service", "gateway"])
def test_it_keeps_what_every_target_promises_with_no_more_rights_than_its_role(
    shop: Lab, address: str
) -> None:
    shop.behind(address)
    shop.cluster.rules = _role(shop)
    said = check_target(shop.target, release("1"), release("2"), release("9"), seconds=900)
    assert "ImagePull" in next(line for line in said if "can't run" in line)
    assert shop.cluster.pods() == []
    assert len(said) == 9


def _role(shop: Lab) -> list[Any]:
    manifests = role_manifests("shop", shop.target.args)
    rules: list[Any] = next(one for one in manifests if one["kind"] == "Role")["rules"]
    return rules


def problem_of(shop: Lab) -> str:
    with pytest.raises(WeighbridgeError) as problem:
        shop.target.check()
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_what_the_account_may_not_do_is_said_verb_by_verb(shop: Lab) -> None:
    shop.cluster.rules = [rule for rule in _role(shop) if "leases" not in rule["resources"]]
    assert "create leases.coordination.k8s.io" in problem_of(shop)
    assert "weighbridge render" in problem_of(shop)


def test_a_call_that_is_forbidden_names_the_verb_and_the_resource(shop: Lab) -> None:
    shop.cluster.rules = []
    with pytest.raises(Unavailable, match=r"may not list deployments\.apps"):
        shop.target.running()


def test_a_namespace_that_is_not_there_is_told(shop: Lab) -> None:
    shop.deploy["namespace"] = "nowhere"
    assert "kubectl create namespace nowhere" in problem_of(shop)


def test_a_namespace_that_the_account_may_not_look_for_is_told_as_well(shop: Lab) -> None:
    shop.deploy["namespace"] = "nowhere"
    shop.cluster.rules = _role(shop)
    said = problem_of(shop)
    assert "may not, in namespace nowhere: get deployments.apps" in said
    assert "kubectl create namespace nowhere" in said


def test_a_gateway_its_class_and_the_gateway_api_are_looked_for(shop: Lab) -> None:
    shop.deploy |= GATEWAY
    assert "there is no Gateway edge" in problem_of(shop)
    shop.cluster.add_gateway("edge", of_class="envoy")
    shop.target.check()
    shop.cluster.store.remove(Key("gateway.networking.k8s.io", "gatewayclasses", "", "envoy"))
    assert "no such GatewayClass" in problem_of(shop)
    shop.cluster.gateway_api = False
    assert "Gateway API" in problem_of(shop)


def test_a_gateway_that_does_not_take_the_route_is_no_address(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.serving.targets.kubernetes.target.ROUTE_SECONDS", 0.1)
    shop.deploy |= GATEWAY
    with pytest.raises(Unavailable, match="has not taken the route"):
        shop.target.route([])


def test_gpus_that_no_node_has_are_told(shop: Lab) -> None:
    shop.deploy["resources"] = {"gpus": 1}
    assert "no node has more than 0" in problem_of(shop)


def test_an_address_that_is_somebody_elses_is_left_to_them(shop: Lab) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "shop"},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 80}]},
    }
    shop.cluster.store.create(Key("", "services", NAMESPACE, "shop"), service, "somebody")
    assert "not ours" in problem_of(shop)
    with pytest.raises(BadInput, match="not ours"):
        shop.target.route([])


def test_without_a_kubeconfig_it_says_what_to_set(
    shop: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    api._connected.cache_clear()
    assert "set KUBECONFIG" in problem_of(shop)


def test_who_logs_in_again_need_not_start_the_deployer_again(shop: Lab, tmp_path: Path) -> None:
    shop.target.check()
    shop.cluster.token = "another"
    assert "credentials are refused" in problem_of(shop)
    shop.cluster.kubeconfig(tmp_path / "kubeconfig")
    shop.target.check()


def test_who_logs_in_again_and_again_opens_one_door_to_a_revision(
    shop: Lab, tmp_path: Path
) -> None:
    shop.promote("1")
    current = shop.state.current
    assert current
    door = shop.target.url_of(current)
    for token in ("another", "a third"):
        shop.cluster.token = token
        assert "credentials are refused" in problem_of(shop)
        shop.cluster.kubeconfig(tmp_path / "kubeconfig")
        assert shop.target.answers(current)
        assert shop.target.url_of(current) == door


def test_without_the_client_it_says_what_to_install(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    api._connected.cache_clear()
    assert "pip install 'weighbridge[kubernetes]'" in problem_of(shop)


def test_a_cluster_that_does_not_answer_is_told_in_a_line(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.cluster.api.close()
    assert "does not answer" in problem_of(shop)


def test_steps_need_a_gateway_and_nobody_has_to_name_them(shop: Lab) -> None:
    deploy = {"target": shop.target_args}
    assert DeployArgs.model_validate(deploy).rollout.steps == (100,)
    with pytest.raises(ValueError, match="gateway"):
        DeployArgs.model_validate({**deploy, "rollout": {"steps": [10, 100]}})
    with_gateway = {"target": {**shop.target_args, **GATEWAY}, "rollout": {"steps": [10, 100]}}
    assert DeployArgs.model_validate(with_gateway).rollout.steps == (10, 100)
