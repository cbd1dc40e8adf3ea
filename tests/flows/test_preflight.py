"""What is looked at before a release fetches or makes anything."""

from pathlib import Path
from typing import Any

import pytest

from tests.configs.test_load import VALID
from weighbridge.configs.load import parse
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.flows import pool_checks
from weighbridge.flows.release_run import ReleaseRun
from weighbridge.flows.release_target import ReleaseTarget
from weighbridge.tasks import weigh


def preflight(extra: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at a recipe with a metric of the hub that is nowhere."""
    metrics = f"evaluate: {{metrics: [{{kind: exact_match}}, {{kind: hub, name: {home}/no.py}}]}}\n"
    recipe = parse(VALID.replace("deploy:", f"{metrics}{extra}deploy:"))
    nowhere: Any = None
    run = ReleaseRun(recipe, Workspace(Settings(home=home)), nowhere, nowhere)
    monkeypatch.setattr(ReleaseTarget, "check", lambda _: None)
    monkeypatch.setattr(pool_checks, "check", lambda *_: None)
    monkeypatch.setattr(weigh, "check", lambda *_: None)
    run.preflight()


@pytest.mark.parametrize("extra", ["", "run: {evaluate: {pool: gpu}}\n"])
def test_a_metric_that_is_nowhere_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    with pytest.raises((BadInput, Unavailable), match="loading metric"):
        preflight(extra, tmp_path, monkeypatch)


def test_metrics_are_not_asked_for_here_where_all_that_takes_them_runs_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight("run: {evaluate: {pool: gpu}, weigh: {pool: gpu}}\n", tmp_path, monkeypatch)
