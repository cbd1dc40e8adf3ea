"""Pruning takes what nobody names, and nothing that somebody runs in, deploys from or builds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from weighbridge.core import environments
from weighbridge.core.pruning import (
    deployed,
    locks,
    mapped,
    prune,
    prune_environments,
    size_on_disk,
)
from weighbridge.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for name in ("needed-1", "old-1", "old-2"):
        folder = tmp_path / "environments" / name / "bin"
        folder.mkdir(parents=True)
        (folder / "python").write_bytes(b"x" * 8192)
        (tmp_path / "environments" / f"{name}.lock").touch()
    return tmp_path


def place(cache: Path, name: str) -> Path:
    return cache / "environments" / name


def test_what_no_lock_names_is_removed_and_told_with_its_size(cache: Path) -> None:
    found = prune(cache, {place(cache, "needed-1")})
    assert [(item.name, item.bytes, item.kept) for item in found] == [
        ("old-1", 8192, None),
        ("old-2", 8192, None),
    ]
    assert [path.name for path in (cache / "environments").glob("*") if path.is_dir()] == [
        "needed-1"
    ]
    assert prune(cache, {place(cache, "needed-1")}) == []


def test_what_is_deployed_stays(cache: Path) -> None:
    found = {item.name: item.kept for item in prune(cache, set(), {"old-1"})}
    assert found == {
        "needed-1": None,
        "old-1": "a Bento that is deployed runs in it",
        "old-2": None,
    }
    assert place(cache, "old-1").exists()


def test_what_a_process_runs_in_stays(cache: Path) -> None:
    program = [sys.executable, "-c", "input()", str(place(cache, "old-2") / "bin" / "python")]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as process:
        found = {item.name: item.kept for item in prune(cache, set())}
        process.communicate(b"\n")
    assert found == {"needed-1": None, "old-1": None, "old-2": f"process {process.pid} runs in it"}
    assert mapped([place(cache, "old-2")]) == {}


def test_what_is_being_built_stays(cache: Path) -> None:
    with FileLock(cache / "environments" / "old-1.lock"):
        found = {item.name: item.kept for item in prune(cache, set())}
    assert found["old-1"] == "it is being built"
    assert place(cache, "old-1").exists()


def test_links_within_a_folder_count_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 4096)
    (tmp_path / "two").hardlink_to(tmp_path / "one")
    assert size_on_disk(tmp_path) == 4096


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
    assert {item.name: bool(item.kept) for item in prune_environments(settings)} == {
        served.name: True,
        old.name: False,
    }
    assert (here.exists(), served.exists(), old.exists()) == (True, True, False)
