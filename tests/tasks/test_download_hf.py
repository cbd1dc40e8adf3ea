"""Through the real huggingface_hub, from a hub that fails on request."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.stand_ins.hub import Hub
from tests.tasks.models import TAKEN, args, model, rows
from tests.waiting import until
from weighbridge.core import ranges
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import VERSION, DownloadArgs, Downloaded, download, identity, pin
from weighbridge.tasks.sources.hf import HubArgs, HubSource

HERE = args("hf://org/model", "hf://datasets/org/data")


@pytest.fixture
def commit(hub: Hub) -> str:
    """A model and data on the hub; the model's commit."""
    hub.add("org/data", {"train.jsonl": rows(), "data.parquet": b"other"}, kind="datasets")
    return hub.add("org/model", model())


def fetched(arguments: DownloadArgs, workspace: Workspace) -> Downloaded:
    return download(pin(arguments, workspace), arguments, workspace)


def refused(
    arguments: DownloadArgs, workspace: Workspace, kind: type[BadInput | Unavailable]
) -> str:
    with pytest.raises(kind) as caught:
        fetched(arguments, workspace)
    assert "\n" not in str(caught.value)
    assert not list((workspace.store.root / "trees").glob("*"))
    return str(caught.value)


def test_only_the_files_of_a_safetensors_model_are_fetched(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    got = fetched(HERE, workspace)
    assert sorted(path.name for path in got.model.path.iterdir()) == TAKEN
    assert {request.path for request in hub.downloads} == {*TAKEN, "train.jsonl"}


def test_a_branch_is_pinned_to_its_commit(hub: Hub, commit: str, workspace: Workspace) -> None:
    assert fetched(HERE, workspace).model.origin == {
        "uri": f"hf://org/model@{commit}",
        "revision": commit,
    }


def test_pinning_moves_no_bytes(hub: Hub, commit: str, workspace: Workspace) -> None:
    pin(HERE, workspace)
    assert not hub.downloads


def test_a_moved_branch_changes_the_stage_and_its_old_commit_does_not(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    before = identity(pin(HERE, workspace), HERE)
    hub.add("org/model", model(seed=1))
    assert identity(pin(HERE, workspace), HERE) != before
    old = args(f"hf://org/model@{commit}", "hf://datasets/org/data")
    assert identity(pin(old, workspace), old) == before


def test_what_is_named_by_commit_is_reused_with_the_hub_away(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    data = pin(HERE, workspace).data.origin["revision"]
    named = args(f"hf://org/model@{commit}", f"hf://datasets/org/data@{data}")
    first = fetched(HERE, workspace)
    workspace.stages.run(
        "download", VERSION, Downloaded, identity(pin(HERE, workspace), HERE), lambda: first
    )
    hub.faults.down = True
    pinned = pin(named, workspace)
    inputs = identity(pinned, named)
    assert workspace.stages.forecast("download", VERSION, Downloaded, inputs).value == first


def test_with_the_hub_away_a_branch_is_unavailable_and_the_last_commit_is_named(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    pin(HERE, workspace)
    hub.faults.down = True
    said = refused(HERE, workspace, Unavailable)
    assert "the hub answers 503" in said
    assert said.endswith(f"or name the commit seen last: {commit}")


def test_an_unreachable_hub_is_unavailable(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, hub: Hub, commit: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert (
        "asking http://127.0.0.1:1 for hf://org/model@main: the hub cannot be reached"
        in refused(HERE, workspace, Unavailable)
    )


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://org/none", "there is no such model repository, or it is private"),
        ("hf://org/model@gone", "the repository has no revision 'gone'"),
        ("hf://org/model@" + "0" * 40, "the repository has no revision '0000"),
    ],
)
def test_what_does_not_exist_is_named(
    hub: Hub, commit: str, workspace: Workspace, uri: str, words: str
) -> None:
    assert words in refused(args(uri, "hf://datasets/org/data"), workspace, BadInput)


def test_a_data_repository_that_does_not_exist_is_named(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    said = refused(args("hf://org/model", "hf://datasets/org/none"), workspace, BadInput)
    assert "there is no such dataset repository" in said


def test_a_gated_repository_says_how_to_get_in(hub: Hub, commit: str, workspace: Workspace) -> None:
    hub.faults.gated = True
    said = refused(HERE, workspace, BadInput)
    assert "access to the repository must be granted first; accept its conditions" in said


def test_a_private_repository_is_read_with_the_token(
    hub: Hub, commit: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.token = "secret"
    assert "set HF_TOKEN" in refused(HERE, workspace, BadInput)
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetched(HERE, workspace)


def test_a_repository_that_closes_after_listing_is_refused(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    pinned = pin(HERE, workspace)
    hub.faults.gated = True
    with pytest.raises(BadInput, match=r"of hf://org/model@\w+: the hub refuses it \(403\)"):
        download(pinned, HERE, workspace)


def test_a_repository_of_pickles_is_refused_before_any_byte(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    hub.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    said = refused(args("hf://org/old", "hf://datasets/org/data"), workspace, BadInput)
    assert "its weights are pickles (pytorch_model.bin)" in said
    assert not hub.downloads


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_bytes_that_are_not_the_published_ones_are_refused(
    hub: Hub, commit: str, workspace: Workspace, path: str
) -> None:
    hub.faults.corrupt = {path}
    said = refused(HERE, workspace, BadInput)
    assert said.startswith(f"verifying {path} of hf://org/model@{commit}: expected ")
    assert ", got " in said
    hub.faults.corrupt = set()
    fetched(HERE, workspace)


def test_a_connection_that_is_cut_goes_on_where_it_was(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    hub.faults.cut, hub.faults.cuts = {"model.safetensors": 30_000}, 2
    fetched(HERE, workspace)
    asked = [request.range for request in hub.downloads if request.path == "model.safetensors"]
    starts = [int(text.removeprefix("bytes=").partition("-")[0]) for text in asked]
    assert len(starts) == 3
    assert starts[0] == 0 < starts[1] < starts[2]


def test_a_server_that_knows_no_ranges_is_enough(
    hub: Hub, commit: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PART", 10_000)
    hub.faults.no_ranges = True
    fetched(HERE, workspace)


def test_a_file_that_never_arrives_whole_is_unavailable_and_what_came_is_kept(
    hub: Hub, commit: str, workspace: Workspace
) -> None:
    hub.faults.cut = {"model.safetensors": 0}
    said = refused(HERE, workspace, Unavailable)
    assert said.startswith(f"downloading model.safetensors of hf://org/model@{commit}: the hub at")
    assert said.endswith("what has arrived is kept: run again to go on")
    hub.faults.cut = {}
    hub.downloads.clear()
    fetched(HERE, workspace)
    assert "tokenizer.json" not in {request.path for request in hub.downloads}


def test_a_part_kept_from_another_revision_is_not_used(
    hub: Hub, commit: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "ATTEMPTS", 1)
    monkeypatch.setattr(ranges, "PART", 10_000)
    hub.faults.cut = {"model.safetensors": 9_999}
    refused(HERE, workspace, Unavailable)
    hub.faults.cut = {}
    hub.add("org/model", model(seed=1))
    got = fetched(HERE, workspace)
    assert (got.model.path / "model.safetensors").read_bytes() == model(seed=1)["model.safetensors"]


def test_damaged_parts_kept_from_an_earlier_run_are_fetched_anew(
    hub: Hub, commit: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PART", 10_000)
    monkeypatch.setattr(ranges, "STREAMS", 1)
    monkeypatch.setattr(ranges, "ATTEMPTS", 1)
    hub.faults.cut, hub.faults.cuts = {"model.safetensors": 9_999}, 1
    hub.faults.corrupt = {"model.safetensors"}
    refused(HERE, workspace, Unavailable)
    for kept in (workspace.store.root / "partial").glob("*/bytes.parts"):
        kept.write_text(kept.read_text() + "10000\n")
    hub.faults.corrupt = set()
    got = fetched(HERE, workspace)
    assert (got.model.path / "model.safetensors").read_bytes() == model()["model.safetensors"]


KILLED = """
import sys
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs, download, pin
args = DownloadArgs.model_validate_json(sys.argv[1])
workspace = Workspace()
download(pin(args, workspace), args, workspace)
"""


def _has_first_part(workspace: Workspace) -> bool:
    """Whether the first part of the large file is noted as done; small files' notes come and go,
    and begin empty.
    """
    for notes in workspace.store.root.glob("partial/*/bytes.parts"):
        with contextlib.suppress(FileNotFoundError):
            match notes.read_text().splitlines():
                case [head, *parts] if "0" in parts and json.loads(head)["size"] > 1 << 20:
                    return True
    return False


@pytest.mark.slow
def test_a_killed_download_goes_on(hub: Hub, workspace: Workspace) -> None:
    """Of 48 MB in three parts, those that had arrived are not asked for again."""
    hub.add("org/data", {"train.jsonl": rows()}, kind="datasets")
    hub.add("org/model", model(kilobytes=48 * 1024 - 64))
    hub.faults.hold_from = 1
    command = [sys.executable, "-c", KILLED, json.dumps(HERE.model_dump(mode="json"))]
    started = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=dict(os.environ))
    try:
        until(lambda: started.poll() is not None or _has_first_part(workspace), 60)
        assert started.poll() is None, "it ended before it could be killed"
    finally:
        started.kill()
        started.wait()
    assert not list((workspace.store.root / "trees").glob("*"))
    hub.downloads.clear()
    hub.faults.hold_from = 0
    fetched(HERE, workspace)
    asked = [request.range for request in hub.downloads if request.path == "model.safetensors"]
    assert not any(text.startswith("bytes=0-") for text in asked)
    assert "tokenizer.json" not in {request.path for request in hub.downloads}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/name", HubArgs(repo="org/name")),
        ("hf://gpt2", HubArgs(repo="gpt2")),
        ("hf://org/name@refs/pr/1", HubArgs(repo="org/name", revision="refs/pr/1")),
        ("hf://datasets/org/name@v1", HubArgs(repo="org/name", repo_type="dataset", revision="v1")),
    ],
)
def test_a_uri_says_repository_and_revision(uri: str, expected: HubArgs) -> None:
    assert HubSource().parse(uri) == expected


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://a b/c", "hf://a/b@"])
def test_a_malformed_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="it is not hf://org/name"):
        HubSource().parse(uri)
    with pytest.raises(ValidationError, match="it is not hf://org/name"):
        args(uri, "file:///data")
