"""The API server stand-in, as Kubernetes' own client sees it: what it is taken for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes import watch as watching
from kubernetes.client import ApiException

from tests.waiting import until
from weighbridge.conformance.kubernetes_api.cluster import NAMESPACE, Cluster
from weighbridge.conformance.kubernetes_api.pods import Image

APPLY = {"_content_type": "application/apply-patch+yaml"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster({"good": Image()}) as cluster:
        cluster.kubeconfig(tmp_path / "kubeconfig")
        yield cluster


@pytest.fixture
def core(cluster: Cluster, tmp_path: Path) -> client.CoreV1Api:
    return client.CoreV1Api(config.new_client_from_config(str(tmp_path / "kubeconfig")))


def config_map(**data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": NAMESPACE},
        "data": data,
    }


def applied(core: client.CoreV1Api, manager: str, *, force: bool = False, **data: str) -> Any:
    return core.patch_namespaced_config_map(
        "settings", NAMESPACE, config_map(**data), field_manager=manager, force=force, **APPLY
    )


def test_each_manager_has_its_fields_and_takes_back_only_those(core: client.CoreV1Api) -> None:
    applied(core, "ours", a="1", b="1")
    applied(core, "theirs", c="1")
    found = applied(core, "ours", a="2")
    assert found.data == {"a": "2", "c": "1"}
    assert {entry.manager for entry in found.metadata.managed_fields} == {"ours", "theirs"}


def test_a_field_of_another_manager_is_a_conflict_unless_it_is_forced(
    core: client.CoreV1Api,
) -> None:
    applied(core, "theirs", a="theirs")
    with pytest.raises(ApiException) as refused:
        applied(core, "ours", a="ours")
    assert refused.value.status == 409
    assert "theirs" in refused.value.body
    assert applied(core, "ours", force=True, a="ours").data == {"a": "ours"}
    # It is the other one's no longer, which says nothing of it now.
    assert applied(core, "theirs").data == {"a": "ours"}


def test_applying_the_same_again_makes_no_new_version(core: client.CoreV1Api) -> None:
    first, again = applied(core, "ours", a="1"), applied(core, "ours", a="1")
    assert first.metadata.resource_version == again.metadata.resource_version


def test_a_write_of_an_earlier_version_is_refused(core: client.CoreV1Api) -> None:
    first = core.create_namespaced_config_map(NAMESPACE, config_map(a="1"))
    newest = core.replace_namespaced_config_map("settings", NAMESPACE, first)
    newest.data = {"a": "2"}
    core.replace_namespaced_config_map("settings", NAMESPACE, newest)
    with pytest.raises(ApiException) as refused:
        core.replace_namespaced_config_map("settings", NAMESPACE, newest)
    assert refused.value.status == 409
    assert "the object has been modified" in refused.value.body


def test_a_second_object_of_one_name_and_one_in_no_namespace_are_refused(
    core: client.CoreV1Api,
) -> None:
    core.create_namespaced_config_map(NAMESPACE, config_map())
    with pytest.raises(ApiException) as twice:
        core.create_namespaced_config_map(NAMESPACE, config_map())
    assert (twice.value.status, "AlreadyExists" in twice.value.body) == (409, True)
    with pytest.raises(ApiException) as nowhere:
        core.create_namespaced_config_map("nowhere", config_map() | {"metadata": {"name": "x"}})
    assert (nowhere.value.status, "nowhere" in nowhere.value.body) == (404, True)


def test_a_watch_tells_what_came_after_a_version(core: client.CoreV1Api) -> None:
    core.create_namespaced_config_map(NAMESPACE, config_map(a="1"))
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.patch_namespaced_config_map(
        "settings", NAMESPACE, {"data": {"a": "2"}}, _content_type="application/merge-patch+json"
    )
    core.delete_namespaced_config_map("settings", NAMESPACE)
    seen = watching.Watch().stream(
        core.list_namespaced_config_map, NAMESPACE, resource_version=version, timeout_seconds=1
    )
    assert [event["type"] for event in seen] == ["MODIFIED", "DELETED"]


def test_without_a_rule_nothing_is_allowed(cluster: Cluster, core: client.CoreV1Api) -> None:
    cluster.rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_config_map(NAMESPACE, config_map())
    assert refused.value.status == 403
    message = json.loads(refused.value.body)["message"]
    assert 'cannot create resource "configmaps"' in message


def test_a_deployment_has_pods_that_answer_and_end(
    cluster: Cluster, core: client.CoreV1Api
) -> None:
    apps = client.AppsV1Api(core.api_client)
    labels = {"app": "demo"}
    container = {"name": "c", "image": "good", "ports": [{"containerPort": 3000}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    body = {"metadata": {"name": "demo"}, "spec": spec}
    apps.create_namespaced_deployment(NAMESPACE, body)
    until(lambda: apps.read_namespaced_deployment("demo", NAMESPACE).status.ready_replicas == 2)
    [first, second] = core.list_namespaced_pod(NAMESPACE, label_selector="app=demo").items
    assert first.status.pod_ip != second.status.pod_ip
    core.delete_namespaced_pod(first.metadata.name, NAMESPACE)
    until(lambda: apps.read_namespaced_deployment("demo", NAMESPACE).status.ready_replicas == 2)
    apps.delete_namespaced_deployment("demo", NAMESPACE)
    until(lambda: not core.list_namespaced_pod(NAMESPACE).items)
