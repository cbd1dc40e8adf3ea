"""Rollouts in a cluster: nobody's answer fails or is cut, whatever happens to it meanwhile."""

from itertools import cycle
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.lab import GOOD, LAG, Clients, Killed, Lab, in_thread
from tests.waiting import until
from weighbridge.conformance.kubernetes_api.store import Refused
from weighbridge.core.errors import Unavailable
from weighbridge.rollout import state, target_operations, target_status
from weighbridge.serving.openai_client import Client
from weighbridge.serving.targets.kubernetes import api, reach
from weighbridge.serving.targets.shared_records import SharedRecords
from weighbridge.serving.traffic_figures import since

anywhere = pytest.mark.parametrize("shop", ["stand-in", "cluster"], indirect=True)


@anywhere
@pytest.mark.parametrize("address", ["service", "gateway"])
def test_a_rollout_under_slow_streams_fails_none_and_cuts_none(shop: Lab, address: str) -> None:
    shop.behind(address)
    assert shop.promote("1").action == "deployed"
    with Clients(shop.cluster) as clients:
        clients.begin("1")
        result = shop.promote("2")
        clients.until_served_by("2")
    assert (result.action, result.version) == ("deployed", "2")
    assert (clients.failed, clients.cut) == ([], [])
    until(lambda: target_operations.stop_drained("shop", shop.workspace))
    assert shop.serving() == {"2"}
    [_, end] = shop.events("end")
    assert (end["outcome"], end["failed"]) == ("serving", 0)
    if address == "gateway":
        assert [step["share"] for step in shop.events("shift")] == [20, 100]
        assert end["requests"] > 0, "what clients asked is evidence"


@anywhere
def test_an_image_that_cannot_be_pulled_is_told_at_once(shop: Lab) -> None:
    shop.promote("1")
    shop.policy["start_deadline"] = 600
    result = shop.promote("9")
    assert (result.action, result.version) == ("failed", "1")
    assert "ImagePull" in result.detail
    assert "demo:9" in shop.events("end")[-1]["detail"]
    assert shop.serving() == {"1"}


def test_a_version_that_found_no_image_is_tried_again_once_it_is_there(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "FIRST_RETRY", 0.0)
    shop.promote("1")
    assert shop.promote("9").action == "failed"
    shop.cluster.images["registry/demo:9"] = GOOD
    assert (shop.reconcile().action, shop.serving()) == ("deployed", {"9"})


def test_a_version_that_found_no_room_is_not_found_bad(shop: Lab) -> None:
    shop.deploy["resources"] = {"gpus": 1}
    shop.policy["start_deadline"] = 1
    shop.promote("1")
    failure = shop.state.last_failure
    assert failure
    assert "Insufficient nvidia.com/gpu" in failure.why
    assert failure.retry_at < float("inf")


def hold_one_version(shop: Lab) -> None:
    """Have one card in the cluster, and say so."""
    allocatable = {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "8Gi", "nvidia.com/gpu": "1"}
    shop.cluster.create(
        "v1", "Node", "nodes", "", "gpu-1", {"status": {"allocatable": allocatable}, "spec": {}}
    )
    small = {"cpu": "100m", "memory": "64Mi", "disk": "64Mi"}
    shop.deploy |= {"surge": False, "resources": {**small, "gpus": 1}}


@pytest.mark.parametrize("address", ["service", "gateway"])
def test_where_cards_hold_one_version_it_ends_first_and_comes_back_if_the_next_fails(
    shop: Lab, address: str
) -> None:
    shop.behind(address)
    hold_one_version(shop)
    shop.promote("1")
    with Clients(shop.cluster, words=16) as clients:
        clients.begin("1")
        result = shop.promote("2")
        clients.until_served_by("2")
        assert shop.promote("dies").action == "failed"
        clients.until_served_by("2")
    assert (result.action, result.version) == ("deployed", "2")
    assert clients.cut == [], "who was answered when it ended is answered to the end"
    assert shop.serving() == {"2"}
    assert shop.target.answers_clients(shop.state.current)
    assert shop.target.problem() == ""
    swaps = shop.events("swap")
    assert [swap["why"] for swap in swaps] == [swaps[0]["why"]] * 2
    assert "surge: false" in swaps[0]["why"]
    assert shop.events("shift") == [], "nobody is there to share the traffic with"


@pytest.mark.parametrize("address", ["service", "gateway"])
def test_a_swap_whose_deployer_is_killed_is_gone_on_with_from_another_machine(
    shop: Lab, tmp_path: Path, address: str
) -> None:
    shop.behind(address)
    hold_one_version(shop)
    shop.promote("1")
    for phase, version in zip(("swap", "start", "probe", "commit"), cycle("21"), strict=False):
        with shop.killed_at(phase), pytest.raises((Killed, Unavailable)):
            shop.promote(version)
        shop.move_to(tmp_path / phase)
        result = shop.reconcile(force=True)
        assert (result.version, shop.state.rollout) == (version, None), (phase, result)
        assert shop.serving() == {version}
        assert shop.target.answers_clients(shop.state.current)
    assert shop.target.problem() == ""


def test_what_pods_counted_of_their_clients_is_what_came_since_the_last_look(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote("1")
    target, current = shop.target, shop.state.current
    assert current
    before = target.traffic_figures(current)
    until(lambda: shop.cluster.backend("shop", LAG))
    for _ in range(3):
        shop.cluster.stream(b"{}")
    found = since(before, target.traffic_figures(current))
    assert (found["requests"], found["errors"], found["in_flight"]) == (3, 0, 0)
    assert 0 < found["seconds_average"] < 1
    monkeypatch.setattr(reach.Pods, "document", lambda *_: None)
    assert target.traffic_figures(current) == {}, "a part of it would look as if it were all"


def test_who_is_outside_the_cluster_asks_what_serves_all_the_same(shop: Lab) -> None:
    shop.promote("1")
    assert shop.managed.target.address == "http://shop.serving.svc", "a name within the cluster"
    [piece, *_] = Client(shop.managed.address_here).stream([{"role": "user", "content": "Hi"}])
    assert piece


def test_a_promotion_reads_its_records_seldom(shop: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedRecords, "GLANCE", 60.0)
    shop.promote("1")
    shop.cluster.asked.clear()
    assert shop.promote("2").action == "deployed"
    records = [
        verb for verb, path in shop.cluster.asked if path.endswith("configmaps/shop-records")
    ]
    # 36; it was 70 while every change read first.
    assert records.count("GET") <= 40, records


def test_who_looks_at_a_revisions_pods_within_a_second_shares_the_look(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.promote("1")
    monkeypatch.setattr(reach, "_LOOK_SECONDS", 60.0)
    current = shop.state.current
    assert current
    assert shop.target.is_healthy(current)
    shop.cluster.asked.clear()
    for target in (shop.target, shop.target):
        assert target.answers(current)
    assert ("GET", "/api/v1/namespaces/serving/pods") not in shop.cluster.asked


def test_a_registry_that_wants_a_login_leads_to_the_secret(shop: Lab) -> None:
    shop.promote("private")
    assert "deploy.target.pull_secret" in shop.events("end")[-1]["detail"]


def test_a_process_that_is_killed_for_its_memory_is_told_with_its_last_words(shop: Lab) -> None:
    shop.promote("1")
    detail = shop.promote("dies").detail
    assert "OOMKilled" in detail
    assert "loading 4096 tensors" in detail


def test_what_a_pod_waits_for_is_in_status_and_ledger_at_once(shop: Lab) -> None:
    shop.deploy["resources"] = {"gpus": 1}
    rollout = in_thread(lambda: shop.promote("1"))
    until(lambda: "Insufficient nvidia.com/gpu" in _detail(shop))
    target_operations.command("shop", "abort", shop.workspace)
    rollout.join()
    [waiting] = shop.events("waiting")
    assert waiting["why"].startswith("Unschedulable: 0/2 nodes are available")
    assert shop.serving() == set()


def test_an_address_that_has_turned_to_a_new_version_answers_while_that_is_judged(
    shop: Lab,
) -> None:
    shop.promote("1")
    shop.policy |= {"step_seconds": 600, "step_deadline": 900}
    rollout = in_thread(lambda: shop.promote("2"))
    until(lambda: shop.state.rollout and shop.state.rollout.share == 100)
    until(lambda: target_status.status(shop.workspace)[0].healthy)
    target_operations.command("shop", "abort", shop.workspace)
    rollout.join()
    assert shop.serving() >= {"1"}


def test_a_pod_that_is_ready_and_out_of_reach_is_told(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(key: object) -> NoReturn:
        raise Refused(503, "ServiceUnavailable", "dial tcp 10.0.0.3:3000: i/o timeout")

    monkeypatch.setattr(shop.cluster, "behind", unreachable)
    shop.policy["start_deadline"] = 2
    assert "can't be reached from here (HTTP 503)" in shop.promote("1").detail
    [waiting] = shop.events("waiting")
    assert "i/o timeout" in waiting["why"]


def test_a_deployer_in_the_cluster_asks_pods_at_their_addresses(
    shop: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.connect(), "is_ours", True)
    monkeypatch.setattr(shop.cluster, "behind", None)  # no proxy is needed
    shop.promote("1")
    assert shop.promote("2").action == "deployed"
    target, current = shop.managed.target, shop.state.current
    assert target.address_here(current) == "http://shop.serving.svc"
    assert target.in_flight(current) == 0


def _detail(shop: Lab) -> str:
    status = target_status.status(shop.workspace) if shop.cluster.pods() else []
    return status[0].detail if status else ""


@anywhere
def test_a_drained_node_costs_nobody_an_answer(shop: Lab) -> None:
    shop.deploy["replicas"] = 2
    shop.promote("1")
    with Clients(shop.cluster) as clients:
        clients.begin("1")
        node = shop.cluster.pods()[0]["spec"]["nodeName"]
        shop.cluster.drain(node)
        clients.until_served_by("1")
    assert (clients.failed, clients.cut) == ([], [])
    assert node not in {pod["spec"]["nodeName"] for pod in shop.cluster.pods()}
    assert shop.managed.target.is_healthy(shop.state.current)


def _promote_and_drain(shop: Lab, version: str) -> None:
    shop.promote(version)
    until(lambda: target_operations.stop_drained("shop", shop.workspace))


@anywhere
@pytest.mark.slow
def test_a_deployer_killed_in_any_phase_is_followed_by_one_on_another_machine(
    shop: Lab, tmp_path: Path
) -> None:
    shop.promote("1")
    with Clients(shop.cluster) as clients:
        clients.begin("1")
        phases = ("start", "probe", "shift", "commit", "stop")
        for phase, version in zip(phases, cycle("231"), strict=False):
            with shop.killed_at(phase), pytest.raises((Killed, Unavailable)):
                _promote_and_drain(shop, version)
            shop.move_to(tmp_path / phase)
            result = shop.reconcile(force=True)
            assert (result.version, shop.state.rollout) == (version, None), (phase, result)
        clients.until_served_by(shop.state.current.name)
    assert (clients.failed, clients.cut) == ([], [])
    until(lambda: target_operations.stop_drained("shop", shop.workspace))
    assert shop.serving() == {shop.state.current.name}
    outcomes = [end["outcome"] for end in shop.events("end")]
    assert outcomes.count("interrupted") == 4, "what the state does not call committed goes back"
    assert len(outcomes) == len(shop.events("begin"))


def test_a_cluster_that_is_gone_is_told_in_the_status_of_its_target(shop: Lab) -> None:
    shop.promote("1")
    [serving] = target_status.status(shop.workspace)
    assert (serving.healthy, serving.running_since > 0) == (True, True)
    shop.cluster.api.close()
    [gone] = target_status.status(shop.workspace)
    assert (gone.target, gone.healthy) == ("shop", False)
    assert "the cluster does not answer" in gone.detail


def test_an_api_server_that_is_away_for_a_moment_ends_no_rollout(shop: Lab) -> None:
    shop.promote("1")
    shop.cluster.failures |= {("PATCH", "/services/shop"): 2, ("PUT", "/shop-records"): 2}
    assert shop.promote("2").action == "deployed"
    assert [end["outcome"] for end in shop.events("end")] == ["serving", "serving"]
