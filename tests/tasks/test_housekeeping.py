"""Which environments are needed: those of every lock in the tree, and those that deployments are written to run in."""

import json
from pathlib import Path

import pytest

from weighbridge.core import environments
from weighbridge.core.settings import Settings
from weighbridge.tasks.housekeeping import deployed, locks, prune_environments

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache")


def test_every_lock_of_an_environment_in_the_tree_is_known() -> None:
    specs = [path for path in ROOT.glob("*/**/*.in") if ".venv" not in path.parts]
    tree = {path.with_suffix(".lock") for path in specs}
    assert len(tree) > 4
    assert tree <= locks()


def test_only_what_no_lock_names_and_nothing_deployed_runs_in_goes(settings: Settings) -> None:
    here = environments.locate(sorted(locks())[0], settings.cache)[0].path
    served, old = here.with_name("llama_cpp-of-last-year"), here.with_name("vllm-of-last-year")
    for folder in (here, served, old):
        folder.mkdir(parents=True)
    state = settings.home / "targets" / "support" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"serving": {"environment": str(served)}}))
    assert deployed(settings) == {served.name}
    assert {item.name: bool(item.kept) for item in prune_environments(settings)} == {served.name: True, old.name: False}
    assert (here.exists(), served.exists(), old.exists()) == (True, True, False)
