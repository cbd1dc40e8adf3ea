"""Folders of this machine: nothing is taken that lies outside of them, or is no file."""

import os
import pwd
import shutil
from pathlib import Path

import pytest

from tests.tasks.models import TAKEN, args, fetched, model, names, refused, rows, write
from weighbridge.core.errors import BadInput
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs, download, pin
from weighbridge.tasks.sources.base import Listing, gathering
from weighbridge.tasks.sources.file import FileArgs


def test_a_folder_that_does_not_exist_is_named(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    said = refused(args(tmp_path / "nowhere", tmp_path / "data"), workspace)
    assert said == f"looking into {tmp_path}/nowhere: no such file or directory; check the path"


@pytest.mark.parametrize("name", ["chat_template.jinja", "model.safetensors", "LICENSE"])
def test_a_link_out_of_the_folder_is_refused(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path, name: str
) -> None:
    write(tmp_path / "elsewhere", {"key": b"secret"})
    (tmp_path / "model" / name).unlink(missing_ok=True)
    (tmp_path / "model" / name).symlink_to("../elsewhere/key")
    assert f"{name} is a link that leads out of it, to {tmp_path}/elsewhere/key" in refused(
        here, workspace
    )


def test_a_file_that_becomes_a_link_after_it_was_listed_is_refused(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    pinned = pin(here, workspace)
    shutil.move(tmp_path / "model" / "LICENSE", tmp_path / "LICENSE")
    (tmp_path / "model" / "LICENSE").symlink_to(tmp_path / "LICENSE")
    with pytest.raises(BadInput, match="is a link that leads out of it"):
        download(pinned, here, workspace)


def test_links_of_the_hubs_own_cache_are_followed(workspace: Workspace, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    write(repository / "blobs", model())
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for name in TAKEN:
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    write(tmp_path / "data", {"train.jsonl": rows()})
    assert names(fetched(args(snapshot, tmp_path / "data"), workspace).model.path) == TAKEN


def test_pipes_and_devices_are_no_files(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "model" / "chat_template.jinja")
    (tmp_path / "model" / "merges.txt").symlink_to("/dev/zero")
    assert names(fetched(here, workspace).model.path) == TAKEN


def test_a_pipe_that_is_named_itself_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "model", model())
    os.mkfifo(tmp_path / "train.jsonl")
    arguments = args(tmp_path / "model", tmp_path / "train.jsonl")
    assert "train.jsonl: it is neither a folder nor a file" in refused(arguments, workspace)


@pytest.mark.parametrize(
    "path", ["../train.jsonl", "/etc/train.jsonl", "a/../../train.jsonl", "a//b", "a\nb", "a" * 300]
)
def test_a_listing_that_leads_out_of_its_folder_is_refused(workspace: Workspace, path: str) -> None:
    file = RemoteFile(path=path, size=1)
    with pytest.raises(BadInput, match="is no path below the folder"):
        gathering(
            Listing(files=[file], origin={"uri": "s3://bucket/prefix"}),
            FileArgs(path="/"),
            workspace.store,
        )


def test_a_home_is_spelt_out_so_that_another_machine_needs_nobody_of_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    written = FileArgs(path="~/data").model_dump_json()
    # A stage on a work pool reads the recipe again, as another user.
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    assert FileArgs.model_validate_json(written).absolute() == tmp_path / "mine" / "data"
    me = pwd.getpwuid(os.getuid())
    assert FileArgs(path=f"~{me.pw_name}/data").path == f"{me.pw_dir}/data"
    assert FileArgs(path="data").path == "data"
