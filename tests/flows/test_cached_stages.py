"""What decides whether a stage is reused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.flows.chain import recipe
from weighbridge.configs.recipe import Recipe
from weighbridge.core.workspace import Workspace
from weighbridge.flows import cached_stages
from weighbridge.tasks import weigh
from weighbridge.tasks.optimizers.gguf import Gguf
from weighbridge.tasks.search import candidates as search_candidates


def optimize_inputs(workspace: Workspace) -> dict[str, Any]:
    downloaded: Any = SimpleNamespace(data="the data")
    model: Any = "the merged weights"
    loaded = Recipe.model_validate(
        recipe("file:///model", "file:///data", deploy__target={"kind": "local", "port": 1})
    )
    return dict(cached_stages.optimize_step(downloaded, model, loaded, workspace).inputs)


def test_variants_are_made_again_where_their_optimizer_or_its_environment_is_another(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = optimize_inputs(workspace)
    assert optimize_inputs(workspace) == before
    with monkeypatch.context() as changed:
        changed.setattr(Gguf, "version", 99)
        assert optimize_inputs(workspace) != before
    (tmp_path / "gguf.lock").write_text("another==1.0\n")
    with monkeypatch.context() as changed:
        changed.setattr(Gguf, "lock", tmp_path / "gguf.lock")
        assert optimize_inputs(workspace) != before


def test_a_search_for_another_objective_or_in_another_way_is_another_weighing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inputs(objective: str, search: dict[str, Any] | None) -> dict[str, Any]:
        document = recipe("file:///model", "file:///data", deploy__target={"kind": "local"})
        document["weigh"] |= {"search": search, "requests": 100}  # objective latency takes 75
        document["select"] = {"objective": objective}
        loaded = Recipe.model_validate(document)
        step = cached_stages.weigh_step(anything, anything, anything, loaded, workspace)
        return dict(step.inputs)

    anything: Any = SimpleNamespace(data="the data", variants=[])
    monkeypatch.setattr(weigh, "candidates", lambda *_: [])
    few = {"trials": 3}
    assert inputs("latency", few) != inputs("throughput", few)
    assert inputs("latency", None) == inputs("throughput", None)
    before, without = inputs("latency", few), inputs("latency", None)
    monkeypatch.setattr(search_candidates, "VERSION", 99)
    assert inputs("latency", few) != before
    assert inputs("latency", None) == without
