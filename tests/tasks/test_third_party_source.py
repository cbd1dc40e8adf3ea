"""A source that knows nothing of ours but the protocol works as the built-in ones do."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from tests.tasks.models import TAKEN, args, model, rows
from weighbridge.core import plugins
from weighbridge.core.errors import BadInput
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.download import DownloadArgs, download, identity, pin
from weighbridge.tasks.sources.base import Listing, SourceArgs

FILES: dict[str, bytes] = {**model(), "train.jsonl": rows()}


class MemoryArgs(SourceArgs):
    """Nothing to choose."""

    kind: Literal["memory"] = "memory"


class Memory:
    """Publishes no digest, and never goes on from what is there."""

    Args: ClassVar[type[SourceArgs]] = MemoryArgs
    fetched: ClassVar[list[str]] = []
    broken: ClassVar[str] = ""

    def parse(self, uri: str) -> MemoryArgs:
        return MemoryArgs()

    def list_files(self, args: Any) -> Listing:
        files = [RemoteFile(path=path, size=len(content)) for path, content in FILES.items()]
        return Listing(files=files, origin={"uri": "memory://"})

    def fetch(
        self,
        args: Any,
        listing: Listing,
        file: RemoteFile,
        to: Path,
        advance: Callable[[int], None],
    ) -> None:
        if file.path == Memory.broken:
            raise BadInput("reading memory", "it broke")
        assert not to.exists()
        to.write_bytes(FILES[file.path])
        advance(file.size)
        Memory.fetched.append(file.path)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> DownloadArgs:
    table = {**plugins.BUILT_IN["source"], "memory": f"{__name__}:Memory"}
    monkeypatch.setattr(plugins, "BUILT_IN", {**plugins.BUILT_IN, "source": table})
    monkeypatch.setattr(Memory, "fetched", [])
    monkeypatch.setattr(Memory, "broken", "")
    return args("memory://", "memory://")


def test_it_brings_a_model_and_data(memory: DownloadArgs, workspace: Workspace) -> None:
    got = download(pin(memory, workspace), memory, workspace)
    assert sorted(path.name for path in got.model.path.iterdir()) == TAKEN


def test_without_any_digest_two_listings_never_count_as_the_same(
    memory: DownloadArgs, workspace: Workspace
) -> None:
    assert identity(pin(memory, workspace), memory) != identity(pin(memory, workspace), memory)


def test_its_error_ends_the_download_and_nothing_is_visible(
    memory: DownloadArgs,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(Memory, "broken", "config.json")
    with pytest.raises(BadInput, match="it broke"):
        download(pin(memory, workspace), memory, workspace)
    assert not list((workspace.store.root / "trees").glob("*"))


def test_without_any_digest_nothing_is_taken_from_a_run_that_failed(
    memory: DownloadArgs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path and size may hold other bytes by now."""
    pinned = pin(memory, workspace)
    with monkeypatch.context() as patch:
        patch.setitem(FILES, "train.jsonl", b"x" * len(FILES["train.jsonl"]))
        with pytest.raises(BadInput, match="it is not JSON"):
            download(pinned, memory, workspace)
    got = download(pinned, memory, workspace)
    assert read_rows(got.data, "test")
