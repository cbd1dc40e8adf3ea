"""Runs: found again, never doubled, marked when they are killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weighbridge.core.workspace import Workspace
from weighbridge.registry import Dataset, MlflowRun, Registry
from weighbridge.registry.runs import flatten

ROOT = Path(__file__).parents[2]


def stage(registry: Registry, inputs: Any = 1) -> MlflowRun:
    release = registry.release(
        "demo", {"recipe": 1}, params={"finetune": {"r": 8}}, tags={"recipe": "demo"}
    )
    return registry.stage(release, "finetune", inputs, params={"r": 8})


def read(registry: Registry, run: MlflowRun) -> Any:
    return registry.connection.client.get_run(run.run_id)


def curve(registry: Registry, run: MlflowRun, key: str = "loss") -> list[tuple[int, float]]:
    return [
        (point.step, point.value)
        for point in registry.connection.client.get_metric_history(run.run_id, key)
    ]


def test_the_same_inputs_find_the_same_run_and_others_a_new_one(registry: Registry) -> None:
    with stage(registry) as first:
        pass
    assert stage(registry).run_id == first.run_id
    assert stage(registry).done
    assert stage(registry, inputs=2).run_id != first.run_id


def test_a_stage_is_a_child_of_its_release(registry: Registry) -> None:
    run = stage(registry)
    tags = read(registry, run).data.tags
    parent = registry.connection.client.get_run(tags["mlflow.parentRunId"])
    assert parent.info.run_name == "release demo"
    assert parent.data.params == {"finetune.r": "8"}


def test_the_loss_curve_is_there_while_it_runs_and_not_doubled_by_resuming(
    registry: Registry,
) -> None:
    run = stage(registry)
    for step in (1, 2, 3):
        run.log_step(step, {"loss": 1 / step, "bad": float("nan")})
    run.flush()
    assert curve(registry, run) == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    resumed = stage(registry)
    assert resumed.continued
    resumed.log_step(3, {"loss": 0.3})
    resumed.log_step(4, {"loss": 0.2})
    resumed.log_history([{"step": step, "loss": 9.0} for step in range(1, 6)])
    assert [step for step, _ in curve(registry, run)] == [1, 2, 3, 4, 5]
    assert curve(registry, run, "bad") == []


def test_a_run_ends_as_its_block_does_and_goes_on_when_tried_again(registry: Registry) -> None:
    with pytest.raises(ValueError, match="no"), stage(registry) as run:
        raise ValueError("no")
    assert read(registry, run).info.status == "FAILED"
    with pytest.raises(KeyboardInterrupt), stage(registry):
        raise KeyboardInterrupt
    assert read(registry, run).info.status == "KILLED"
    with stage(registry) as again:
        assert read(registry, run).info.status == "RUNNING"
    assert again.run_id == run.run_id
    assert read(registry, run).info.status == "FINISHED"


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_is_marked_and_then_continued(
    registry: Registry, workspace: Workspace
) -> None:
    code = (
        "import os, signal\n"
        "from weighbridge.core.settings import Settings\n"
        "from weighbridge.registry import Registry\n"
        "registry = Registry.connect(Settings())\n"
        "registry.release('demo', 1, params={}, tags={})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    client, experiment = registry.connection.client, registry.connection.experiment("demo")
    (killed,) = client.search_runs([experiment])
    assert killed.info.status == "RUNNING"
    registry.release("demo", "something else", params={}, tags={})
    assert client.get_run(killed.info.run_id).info.status == "KILLED"
    again = registry.release("demo", 1, params={}, tags={})
    assert again.run_id == killed.info.run_id
    assert client.get_run(killed.info.run_id).info.status == "RUNNING"


def test_one_key_is_kept_for_each_model_and_data_set_and_told_once(registry: Registry) -> None:
    client = registry.connection.client
    run = stage(registry)
    models = [
        client.create_logged_model(run.experiment_id, name).model_id for name in ("base", "tuned")
    ]
    data = Dataset("validation", "sha256:abc", "file:///data")
    for one in (run, stage(registry)):
        one.log_dataset(data)
        one.log_models(outputs=models)
        for value, model_id in enumerate(models):
            one.log_metrics({"exact_match": value}, data, model_id)
    for value, model_id in enumerate(models):
        (metric,) = client.get_logged_model(model_id).metrics
        assert (metric.value, metric.dataset_name) == (value, "validation")
    assert len(read(registry, run).inputs.dataset_inputs) == 1


def test_nested_parameters_are_flat_and_empty_ones_left_out() -> None:
    assert flatten({"a": {"b": 1, "c": None}, "d": [], "e": [1, 2]}) == {"a.b": "1", "e": "[1, 2]"}


def test_what_cannot_be_the_name_of_a_parameter_is_kept_as_json(registry: Registry) -> None:
    schema = {"$schema": "x", "properties": {"team": {"$ref": "#/$defs/team"}, "n": {"type": "a"}}}
    deep = {"a" * 100: {"b" * 100: {"c" * 100: 1}}}
    params = {"answers": {"json_schema": schema, "limit": 3}, "deep": deep, "odd": {"a//b": 1}}
    run = registry.release("demo", {"recipe": 2}, params=params, tags={})
    assert read(registry, run).data.params == {
        "answers.json_schema": json.dumps(schema),
        "answers.limit": "3",
        f"deep.{'a' * 100}.{'b' * 100}": json.dumps({"c" * 100: 1}),
        "odd": json.dumps({"a//b": 1}),
    }


def test_a_metric_of_any_label_is_logged(registry: Registry) -> None:
    run = registry.release("demo", {"recipe": 3}, params={}, tags={})
    run.log_metrics({"hit@1": 0.5, "exact_match": 1.0})
    assert read(registry, run).data.metrics == {"hit_1": 0.5, "exact_match": 1.0}


def test_a_description_that_is_too_long_ends_with_a_line_and_says_where_the_whole_is(
    registry: Registry,
) -> None:
    def described(markdown: str) -> str:
        with stage(registry) as run:
            run.describe(markdown, "The whole is elsewhere.")
        return str(read(registry, run).data.tags["mlflow.note.content"])

    assert described("# Short") == "# Short"
    told = described("a line of twenty-four...\n" * 400)
    assert 7900 < len(told) <= 8000
    assert told.endswith("twenty-four...\n\nThe whole is elsewhere.")
