"""The deployer: calls wake it, reconciling decides, and neither MLflow nor one bad target stops the
rest.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployer.bench import DEMO, EDGE, NOTHING, Bench
from tests.deployer.test_webhook_receiver import ALIAS
from tests.waiting import soon
from weighbridge.core.errors import Unavailable
from weighbridge.deployer.webhook_receiver import PATH
from weighbridge.registry import Binding
from weighbridge.rollout.reconcile import ReconcileResult


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "home", DEMO, EDGE)
    yield bench
    bench.close()


def test_every_target_is_looked_at_at_the_start_and_what_was_left_is_settled_first(
    bench: Bench,
) -> None:
    bench.start()
    assert soon(lambda: sorted(bench.work.done) == [("demo", "start"), ("edge", "start")])
    assert bench.work.recovered == 1
    assert soon(lambda: bench.get("/status")["targets"]["demo"].get("version") == "7")
    assert bench.get("/status")["mlflow"]["answers"] is True


def test_what_failed_is_tried_again_when_somebody_asks_for_it_after_that(bench: Bench) -> None:
    bench.work.failure = time.time() + 3600
    bench.start()
    bench.wake(target="demo", trigger="promote")
    assert soon(lambda: ("demo", "promote") in bench.work.done)
    assert not any(bench.work.forced)
    bench.work.failure = time.time() - 1
    bench.wake(target="demo", trigger="promote")
    assert soon(lambda: any(bench.work.forced))


def test_it_looks_anyway_when_nobody_wakes_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "home", DEMO)
    object.__setattr__(bench.deployer._settings, "reconcile_seconds", 0.05)
    try:
        bench.start()
        assert soon(lambda: bench.work.done.count(("demo", "reconcile")) >= 3)
    finally:
        bench.close()


def test_a_webhook_wakes_it_and_becomes_an_event_of_prefects(bench: Bench) -> None:
    bench.start()
    assert soon(lambda: len(bench.work.done) == 2)
    assert bench.deliver() == 200
    assert soon(lambda: ("demo", "webhook") in bench.work.done)
    (event,) = bench.events
    assert (event.event, event.model) == ("mlflow.model-version-alias.created", "demo")
    assert event.related == {
        "mlflow.model-version.demo.7": "model-version",
        "mlflow.alias.champion": "alias",
    }


def test_another_alias_is_told_to_prefect_and_wakes_nobody(bench: Bench) -> None:
    bench.start()
    assert soon(lambda: len(bench.work.done) == 2)
    assert bench.deliver(alias="challenger") == 200
    assert len(bench.events) == 1
    time.sleep(0.3)
    assert len(bench.work.done) == 2


def test_a_forged_webhook_wakes_nobody(bench: Bench) -> None:
    bench.start()
    assert soon(lambda: len(bench.work.done) == 2)
    assert httpx.post(f"{bench.deployer.url}{PATH}", json=ALIAS, trust_env=False).status_code == 401
    time.sleep(0.3)
    assert len(bench.work.done) == 2
    assert bench.events == []


@pytest.mark.parametrize(
    ("result", "event"),
    [
        (ReconcileResult("deployed", "version 8 serves", "8", "8"), "served"),
        (ReconcileResult("failed", "its answers", "7", "8"), "failed"),
        (ReconcileResult("failed", "somebody aborted it", "7", "8", True), "taken-back"),
        (ReconcileResult("kept", "it has no Bento", "7", "8"), "kept"),
    ],
)
def test_every_end_of_a_rollout_is_an_event_of_prefects(
    tmp_path: Path, result: ReconcileResult, event: str
) -> None:
    bench = Bench(tmp_path / "home", DEMO)
    bench.work.results = [NOTHING, result, result]
    try:
        bench.start()
        for count in (1, 2, 3, 4):
            assert soon(lambda count=count: len(bench.work.done) >= count)
            bench.wake(target="demo", trigger="promote")
        # What is kept stays so at every look, and is told once; each of the others is a rollout.
        wanted = 1 if event == "kept" else 2
        assert soon(lambda: len(bench.events) == wanted)
    finally:
        bench.close()
    assert {told.event for told in bench.events} == {f"weighbridge.rollout-{event}"}
    told = bench.events[0]
    assert told.payload == {
        "target": "demo",
        "version": "8",
        "serving": result.version,
        "why": result.detail,
    }
    assert told.related["weighbridge.target.demo"] == "target"


def test_a_burst_while_a_rollout_goes_on_is_one_more_look_afterwards(bench: Bench) -> None:
    gate = bench.work.held["demo"] = threading.Event()
    bench.start()
    assert soon(lambda: bench.work.at_work == {"demo"})
    for _ in range(50):
        assert bench.deliver() == 200
    assert soon(lambda: bench.get("/status")["targets"]["demo"]["busy_since"])
    time.sleep(0.3)
    gate.set()
    assert soon(lambda: bench.work.done.count(("demo", "webhook")) == 1)
    time.sleep(0.3)
    assert [done for done in bench.work.done if done[0] == "demo"] == [
        ("demo", "start"),
        ("demo", "webhook"),
    ]


def test_a_target_that_hangs_does_not_delay_another(bench: Bench) -> None:
    bench.work.held["demo"] = threading.Event()
    bench.start()
    assert soon(lambda: bench.work.at_work == {"demo"})
    bench.wake(target="edge", trigger="promote")
    assert soon(lambda: ("edge", "promote") in bench.work.done)
    assert bench.work.at_work == {"demo"}


def test_without_mlflow_what_serves_is_kept_right_and_status_says_so(bench: Bench) -> None:
    bench.mlflow.down = "connection refused"
    bench.start()
    assert bench.work.recovered == 2  # at the start, and as nobody attends the targets
    assert bench.get("/status")["mlflow"]["answers"] is False
    assert "connection refused" in bench.get("/status")["mlflow"]["detail"]
    assert bench.work.done == []
    bench.mlflow.down = ""
    bench.wake()
    assert soon(lambda: len(bench.work.done) == 2)
    assert bench.get("/status")["mlflow"]["answers"] is True


def test_mlflow_gone_in_the_middle_of_a_rollout_leaves_the_rollout_alone(bench: Bench) -> None:
    gate = bench.work.held["demo"] = threading.Event()
    bench.start()
    assert soon(lambda: bench.work.at_work == {"demo"})
    bench.mlflow.down = "gone"
    bench.wake()
    assert soon(lambda: bench.get("/status")["mlflow"]["answers"] is False)
    assert bench.work.recovered == 1
    gate.set()
    assert soon(lambda: bench.get("/status")["targets"]["demo"].get("action"))


def test_an_error_at_a_target_is_in_its_status_and_it_is_tried_again(bench: Bench) -> None:
    bench.work.wrong["demo"] = Unavailable(
        "starting haproxy", "it is not installed", "apt-get install haproxy"
    )
    bench.start()
    assert soon(lambda: bench.get("/status")["targets"]["demo"].get("action") == "error")
    assert "apt-get install haproxy" in bench.get("/status")["targets"]["demo"]["detail"]
    bench.wake()
    assert soon(lambda: bench.get("/status")["targets"]["demo"]["action"] == "nothing")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("a\nbug"), "a bug"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_no_error_ends_a_targets_thread_and_each_is_told_in_one_line(
    bench: Bench, error: Exception, told: str
) -> None:
    bench.work.wrong["demo"] = error
    bench.start()
    assert soon(lambda: bench.get("/status")["targets"]["demo"].get("action") == "error")
    assert bench.get("/status")["targets"]["demo"]["detail"] == told
    bench.wake()
    assert soon(lambda: bench.get("/status")["targets"]["demo"].get("action") == "nothing")


def test_targets_come_and_go_and_move(bench: Bench) -> None:
    bench.start()
    assert soon(lambda: len(bench.work.done) == 2)
    bench.mlflow.known_bindings = [Binding(target="demo", model="moved", deploy={})]
    bench.wake()
    assert soon(lambda: list(bench.get("/status")["targets"]) == ["demo"])
    assert bench.get("/status")["targets"]["demo"]["model"] == "moved"
    assert soon(lambda: not any(thread.name == "target edge" for thread in threading.enumerate()))


def test_only_where_something_is_to_be_done_is_there_a_flow_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(
        job: Any, work: Callable[[], ReconcileResult], state: object, tags: object
    ) -> ReconcileResult:
        shown.append(job.trigger)
        return work()

    monkeypatch.setattr("weighbridge.deployer.deployer.with_shadow_run", show)
    bench.start()
    assert soon(lambda: len(bench.work.done) == 2)
    assert shown == []
    bench.work.needed = True
    bench.wake(target="demo", trigger="promote")
    assert soon(lambda: "promote" in shown)


def test_its_webhook_is_set_up_and_where_it_cannot_be_that_is_said(bench: Bench) -> None:
    bench.mlflow.no_webhooks = "only on a server"
    bench.start()
    status = bench.get("/status")["webhook"]
    assert (status["set"], "only on a server" in status["detail"]) == (False, True)
    bench.mlflow.no_webhooks = ""
    bench.deployer._webhook_due = 0.0
    bench.wake()
    assert soon(lambda: bench.mlflow.webhooks == [(f"{bench.deployer.url}{PATH}", "s3cret")])
    bench.wake()
    time.sleep(0.3)
    assert len(bench.mlflow.webhooks) == 1
