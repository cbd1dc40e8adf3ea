"""Two falls in a row go back; one fall, no verdict, a rollout under way or a person's decision do
not.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.flows import monitor
from weighbridge.flows.events import Announcement
from weighbridge.registry import Binding, Registry
from weighbridge.registry.api import MONITORING
from weighbridge.rollout import operator_commands
from weighbridge.rollout.deploy_args import MonitorArgs
from weighbridge.rollout.reconcile import ReconcileResult
from weighbridge.rollout.sequential_test import Judgement, Verdict
from weighbridge.rollout.state import home_records
from weighbridge.serving.targets.base import Release, Revision

BINDING = Binding(target="demo", model="demo", deploy={})


class Scene:
    """A target at which version 2 serves, after version 1; MLflow is real, the endpoint and the
    rollout are not.
    """

    def __init__(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace = workspace
        self.registry = Registry.connect(workspace.settings)
        self.verdicts: list[Verdict] = []
        self.events: list[Announcement] = []
        self.redeployed: list[str] = []
        self.opened = 0
        self.state = SimpleNamespace(current=self._revision("2"), rollout=None)
        self.managed = SimpleNamespace(
            name="demo",
            records=home_records("demo", workspace.settings.home),
            workspace=workspace,
            load_state=lambda: self.state,
            args=SimpleNamespace(monitor=MonitorArgs(questions=4)),
            target=SimpleNamespace(traffic_figures=lambda revision: {}),
        )
        self._register()
        patches: dict[str, Callable[..., Any]] = {
            "weighbridge.flows.monitor.reconcile.managed_target_of": self._open,
            "weighbridge.flows.monitor.reconcile.reconcile": self._redeploy,
            "weighbridge.flows.monitor.target_operations.version_before": lambda *_: "1",
            "weighbridge.flows.monitor.announce": self.events.append,
            "weighbridge.flows.monitor._judge": self._judged,
        }
        for name, patch in patches.items():
            monkeypatch.setattr(name, patch)

    def look(self, *verdicts: Verdict) -> tuple[bool, str]:
        """So many looks with these verdicts; what the last one said."""
        for verdict in verdicts:
            self.verdicts = [verdict]
            answer = monitor.look(BINDING, self.registry, self.workspace)
        return answer

    @property
    def champion(self) -> str:
        desired = self.registry.desired_version("demo")
        return desired.version if desired else ""

    def _register(self) -> None:
        with self.registry.release("demo", 1, params={}, tags={}) as run:
            for content in ("1", "2", "3"):
                with self.workspace.store.scratch() as scratch:
                    (scratch / "files").mkdir()
                    (scratch / "files" / "weights.bin").write_text(content)
                    artifact = self.workspace.store.add(scratch / "files", "safetensors", {})
                self.registry.register("demo", "variant", artifact, run=run)
        self.registry.promote(self.registry.version("demo", "2"))

    def _revision(self, version: str) -> Revision:
        release = Release(name="demo", version=version, bento=f"demo:{version}", digest="sha256:x")
        return Revision(name=version, release=release, url="http://127.0.0.1:1")

    def _redeploy(self, binding: Binding, *_: object, force: bool) -> ReconcileResult:
        assert force, "the version before must be tried even if it failed once"
        records = home_records("demo", self.workspace.settings.home)
        move = operator_commands.read(records).move_to(self.champion)
        assert move == "rollback", "it must be quick"
        self.redeployed.append(self.champion)
        self.state.current = self._revision(self.champion)
        return ReconcileResult("deployed", f"version {self.champion} serves", self.champion)

    def _open(self, *_: object) -> SimpleNamespace:
        self.opened += 1
        return self.managed

    def _judged(self, *_: object) -> Judgement:
        return Judgement(
            verdict=self.verdicts[0],
            why="the score fell by 0.4",
            evidence={"drop": 0.4, "questions": 4.0},
        )


@pytest.fixture
def scene(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(workspace, monkeypatch)


def test_two_falls_in_a_row_go_back_once_and_say_so(scene: Scene) -> None:
    assert scene.look("fail")[0] is False
    assert scene.champion == "2"
    is_well, detail = scene.look("fail")
    assert scene.opened == 2, "whoever goes back knows the target already"
    assert (is_well, scene.champion, scene.redeployed) == (False, "1", ["1"])
    assert "back to 1: version 1 serves" in detail
    (event,) = scene.events
    assert event.event == "weighbridge.rolled-back"
    assert event.payload == {
        "target": "demo",
        "version": "2",
        "to": "1",
        "why": "the score fell by 0.4",
    }
    assert scene.look("pass")[0] is True
    assert scene.champion == "1"


def test_a_look_that_learns_no_figures_takes_nothing_from_the_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((1000.0, 1300.0, 1600.0))
    monkeypatch.setattr("weighbridge.flows.monitor.time", SimpleNamespace(time=lambda: next(times)))
    looks = iter([{"responses_2xx": 100.0}, {}, {"responses_2xx": 130.0}])
    scene.managed.target.traffic_figures = lambda _: next(looks)
    scene.look("pass", "pass", "pass")
    client = scene.registry.connection.client
    (run,) = client.search_runs([scene.registry.connection.experiment(MONITORING)])
    history = client.get_metric_history(run.info.run_id, "gateway.requests")
    assert [(point.step, point.value) for point in history] == [(1000, 100), (1600, 30)]


@pytest.mark.parametrize(
    "verdicts",
    [("fail", "pass", "fail"), ("fail", "error"), ("error", "error"), ("inconclusive",) * 3],
)
def test_less_than_two_falls_in_a_row_change_nothing(
    scene: Scene, verdicts: tuple[Verdict, ...]
) -> None:
    scene.look(*verdicts)
    assert (scene.champion, scene.redeployed, scene.events) == ("2", [], [])


def test_falls_are_remembered_by_version(scene: Scene) -> None:
    scene.look("fail")
    scene.state.current = scene._revision("3")
    scene.registry.promote(scene.registry.version("demo", "3"))
    scene.look("fail")
    assert (scene.champion, scene.redeployed) == ("3", [])


def test_an_alias_that_somebody_has_moved_on_is_left_alone(scene: Scene) -> None:
    scene.look("fail")
    scene.registry.promote(scene.registry.version("demo", "3"))
    is_well, detail = scene.look("fail")
    assert (is_well, "the alias has moved on" in detail) == (False, True)
    assert (scene.champion, scene.redeployed) == ("3", [])


def test_nothing_is_asked_during_a_rollout_or_where_nothing_serves(scene: Scene) -> None:
    scene.state.rollout = object()
    assert scene.look("fail", "fail") == (True, "a rollout is under way: it judges by itself")
    scene.state = SimpleNamespace(current=None, rollout=None)
    assert scene.look("fail", "fail") == (True, "nothing serves here")
    assert scene.champion == "2"


def test_figures_are_on_the_versions_logged_model_look_by_look(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter((1000.0, 1300.0))
    monkeypatch.setattr("weighbridge.flows.monitor.time", SimpleNamespace(time=lambda: next(times)))
    scene.look("pass", "inconclusive")
    client, version = scene.registry.connection.client, scene.registry.version("demo", "2")
    (run,) = client.search_runs([scene.registry.connection.experiment(MONITORING)])
    assert (run.info.run_name, run.info.status) == ("demo: demo 2", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "drop")
    assert [(point.step, point.value) for point in history] == [(1000, 0.4), (1300, 0.4)]
    assert [point.value for point in client.get_metric_history(run.info.run_id, "well")] == [1.0]
    metrics = client.get_logged_model(version.model_id).metrics
    assert {"drop", "questions", "well"} <= {metric.key for metric in metrics}


def test_a_target_that_cannot_be_looked_at_does_not_hide_the_others(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> object:
        raise Unavailable("reading the record", "it is damaged")

    monkeypatch.setattr("weighbridge.flows.monitor.reconcile.managed_target_of", broken)
    assert monitor._look_or_say_why(BINDING, scene.registry, scene.workspace) == (
        False,
        "reading the record: it is damaged",
    )
