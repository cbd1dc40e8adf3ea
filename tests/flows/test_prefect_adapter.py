"""What a flow in our coat shows in Prefect, and gives its caller."""

import base64
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import MACHINE_CACHE
from weighbridge.core.errors import GateFailed, Unavailable
from weighbridge.core.progress import track
from weighbridge.core.settings import Settings
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.versions import own_version
from weighbridge.flows.prefect_server import prefect_api

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WORSE = GateFailed("evaluating", "the fine-tune is worse", "train longer")


@dataclass
class Recorded:
    """Everything one good run and two bad ones left in Prefect."""

    given: StageOutcome[int] | None = None
    raised: dict[str, BaseException] = field(default_factory=dict)
    flow_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    task_runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: list[dict[str, Any]] = field(default_factory=list)

    def state(self, stage: str) -> tuple[str, str, str]:
        state = self.task_runs[stage]["state"]
        return state["type"], state["name"], state["message"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("empty")))
        patch.setattr(logging.getLogger("weighbridge"), "level", logging.INFO)
        settings = Settings(home=tmp_path_factory.mktemp("home"), cache=MACHINE_CACHE)
        result = Recorded()
        with prefect_api(settings):
            run_flows(result, patch)
        with prefect_api(settings):
            read_back(result)
        yield result


def run_flows(result: Recorded, patch: pytest.MonkeyPatch) -> None:
    from weighbridge.flows import prefect_adapter

    patch.setattr(prefect_adapter._ProgressArtifacts, "FIRST_AFTER", 0.0)
    patch.setattr(prefect_adapter._ProgressArtifacts, "EVERY", 0.0)

    def train() -> StageOutcome[int]:
        logging.getLogger("weighbridge.finetune").info("loss 0.5")
        with track("training", 4, "steps") as update:
            update(2)
            update(4)
        return StageOutcome(7, reused=False, why="r changed", seconds=3.21)

    def fail(error: Exception) -> StageOutcome[int]:
        raise error

    @prefect_adapter.release_flow(name="release", flow_run_name="{what}")
    def release(what: str) -> None:
        if what == "good":
            prefect_adapter.run_stage(
                "download",
                lambda: StageOutcome(1, reused=True, why="same inputs as on Monday", seconds=0.0),
            )
            result.given = prefect_adapter.run_stage("finetune", train)
            prefect_adapter.publish_weighing("# Report", [{"candidate": "q8", "NLL": "0.1"}], PNG)
        else:
            prefect_adapter.run_stage(
                what, lambda: fail(WORSE if what == "gate" else ValueError("a bug"))
            )

    release("good")
    for what in ("gate", "bug"):
        with pytest.raises((GateFailed, ValueError)) as caught:
            release(what)
        result.raised[what] = caught.value


def read_back(result: Recorded) -> None:
    from prefect.client.orchestration import get_client

    paths: dict[str, Any] = {
        name: f"/{name}/filter" for name in ("flow_runs", "task_runs", "artifacts", "logs")
    }
    with get_client(sync_client=True) as client:
        answers = {
            name: client.request("POST", path, json={}).json() for name, path in paths.items()
        }
    result.flow_runs = {run["name"]: run for run in answers["flow_runs"]}
    result.task_runs = {run["name"]: run for run in answers["task_runs"]}
    result.artifacts = {artifact["key"]: artifact for artifact in answers["artifacts"]}
    result.logs = answers["logs"]


def test_the_caller_gets_what_the_stage_gave(recorded: Recorded) -> None:
    assert recorded.given == StageOutcome(7, reused=False, why="r changed", seconds=3.21)


def test_a_reused_stage_says_so_and_why(recorded: Recorded) -> None:
    assert recorded.state("download") == ("COMPLETED", "Reused", "same inputs as on Monday")


def test_a_stage_that_ran_says_how_long_and_why(recorded: Recorded) -> None:
    assert recorded.state("finetune") == ("COMPLETED", "Completed", "in 3.2 s; r changed")


def test_a_known_error_reaches_the_caller_as_it_is(recorded: Recorded) -> None:
    assert recorded.raised["gate"] is WORSE


def test_a_known_error_fails_task_and_flow_with_its_one_line(recorded: Recorded) -> None:
    line = "evaluating: the fine-tune is worse; train longer"
    assert recorded.state("gate") == ("FAILED", "Failed", line)
    assert recorded.flow_runs["gate"]["state"]["message"] == line


def test_a_known_error_leaves_no_traceback_on_the_page(recorded: Recorded) -> None:
    mine = [
        log["message"]
        for log in recorded.logs
        if log["flow_run_id"] == recorded.flow_runs["gate"]["id"]
    ]
    assert len(mine) >= 3
    assert not [message for message in mine if "Traceback" in message or "NoneType" in message]


def test_an_error_nobody_foresaw_shows_its_traceback_and_reaches_the_caller(
    recorded: Recorded,
) -> None:
    assert isinstance(recorded.raised["bug"], ValueError)
    assert recorded.flow_runs["bug"]["state_type"] == "FAILED"
    assert [
        log for log in recorded.logs if "Traceback" in log["message"] and "a bug" in log["message"]
    ]


def test_our_log_lines_are_on_the_page_of_their_task(recorded: Recorded) -> None:
    lines = [log for log in recorded.logs if log["message"] == "loss 0.5"]
    assert [(log["name"], log["task_run_id"]) for log in lines] == [
        ("weighbridge.finetune", recorded.task_runs["finetune"]["id"])
    ]


def test_progress_of_long_work_is_a_bar_on_the_tasks_page(recorded: Recorded) -> None:
    bar = recorded.artifacts["finetune-progress"]
    assert (bar["type"], bar["data"], bar["description"]) == ("progress", 100, "training")
    assert bar["task_run_id"] == recorded.task_runs["finetune"]["id"]


def test_the_report_is_kept_as_markdown_table_and_chart(recorded: Recorded) -> None:
    image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    kinds = {
        key: recorded.artifacts[key]["type"] for key in ("report", "report-table", "report-chart")
    }
    assert kinds == {"report": "markdown", "report-table": "table", "report-chart": "image"}
    assert recorded.artifacts["report"]["data"].startswith("# Report\n")
    assert image in recorded.artifacts["report"]["data"]
    assert recorded.artifacts["report-chart"]["data"] == image
    assert recorded.artifacts["report-table"]["data"] == '[{"candidate": "q8", "NLL": "0.1"}]'


def test_nothing_of_a_flow_is_written_to_the_terminal(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with prefect_api(Settings(home=tmp_path / "home", cache=MACHINE_CACHE)):
        from weighbridge.flows.prefect_adapter import release_flow, run_stage

        def fail() -> StageOutcome[int]:
            raise WORSE

        with pytest.raises(GateFailed):
            release_flow(name="release")(lambda: run_stage("gate", fail))()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("version", ["0.0.1", own_version(), "a1b2", None])
def test_a_worker_runs_what_its_own_release_or_an_earlier_one_registered(
    monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    run_of_a_deployment_by(version, monkeypatch)()


def test_a_worker_refuses_what_a_newer_release_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = run_of_a_deployment_by("99.0", monkeypatch)
    said = r"^running 'release' on .*: Weighbridge 99.0 registered it, .* weighbridge>=99.0 there$"
    with pytest.raises(Unavailable, match=said):
        refuse()


def run_of_a_deployment_by(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """What refuses a run, in one of a deployment that a release of this version registered."""
    from weighbridge.flows import prefect_adapter

    deployment = SimpleNamespace(name="release", version=version)
    client = SimpleNamespace(read_deployment=lambda which: deployment if which == "7" else None)
    context = SimpleNamespace(flow_run=SimpleNamespace(deployment_id="7"))
    monkeypatch.setattr(prefect_adapter.FlowRunContext, "get", lambda: context)
    monkeypatch.setattr(
        prefect_adapter, "get_client", lambda sync_client: contextlib.nullcontext(client)
    )
    return prefect_adapter._refuse_newer_deployment


def test_a_reference_of_a_json_schema_is_no_block_of_prefects() -> None:
    from prefect.exceptions import ParameterTypeError

    from weighbridge.flows.prefect_adapter import release_flow

    @release_flow(name="release")
    def release(recipe: dict[str, Any], rows: int) -> None:
        """Do nothing."""

    recipe = {"json_schema": {"$ref": "#/$defs/team"}}
    given = release.validate_parameters({"recipe": recipe, "rows": "3"})
    assert given == {"recipe": recipe, "rows": 3}
    with pytest.raises(ParameterTypeError, match="rows: Input should be a valid integer"):
        release.validate_parameters({"recipe": recipe, "rows": "many"})
