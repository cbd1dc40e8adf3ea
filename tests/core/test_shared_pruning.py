"""Old artifacts in a bucket of a real S3 service."""

import time
from pathlib import Path

import pytest

from tests.stand_ins.swift import Swift
from weighbridge.core import shared_pruning
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.shared_pruning import SharedHolding, freed_by, remove, shared_holdings
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.workspace import Workspace


@pytest.fixture
def home(bucket: str, tmp_path: Path) -> Workspace:
    return Workspace(Settings(home=tmp_path / "home", store=f"s3://{bucket}/team"))


@pytest.fixture
def shared(home: Workspace) -> SharedStore:
    assert home.shared is not None
    return home.shared


def run(home: Workspace, stage: str, *contents: bytes) -> Artifact:
    def make() -> Artifact:
        with home.store.scratch() as scratch:
            for number, content in enumerate(contents):
                (scratch / f"{number}.jsonl").write_bytes(content)
            return home.store.add(scratch, "jsonl")

    return home.stages.run(stage, 1, Artifact, {"contents": list(map(str, contents))}, make).value


def by_digest(holdings: list[SharedHolding], artifact: Artifact) -> SharedHolding:
    return next(one for one in holdings if one.what == f"artifact {artifact.short}")


def test_what_was_written_lately_stays(home: Workspace, shared: SharedStore) -> None:
    made = run(home, "download", b"one")
    holding = by_digest(shared_holdings(shared, {}, days=30), made)
    assert holding.why == "written less than 30 days ago"
    assert freed_by([holding]) == 0


def test_what_is_old_and_needed_by_nothing_goes_with_its_record_and_what_is_needed_stays(
    home: Workspace, shared: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = run(home, "download", b"old", b"both")
    needed = run(home, "finetune", b"both")
    later(monkeypatch)
    holdings = shared_holdings(shared, {needed.digest: "version 3 of demo"}, days=30)
    assert by_digest(holdings, needed).why == "version 3 of demo"
    assert by_digest(holdings, old).why == ""
    assert freed_by(holdings) >= len(b"old")
    remove(shared, holdings)
    assert not shared.has(old.digest)
    assert shared.has(needed.digest)
    elsewhere = Workspace(Settings(home=home.settings.home / "other", store=home.settings.store))
    (file,) = elsewhere.store.locate(needed.digest).iterdir()
    assert file.read_bytes() == b"both", "a file of both artifacts stays"
    forecast = elsewhere.stages.forecast(
        "download", 1, Artifact, {"contents": ["b'old'", "b'both'"]}
    )
    assert forecast.value is None, "no record leads to what is gone"


def test_files_of_an_upload_that_was_broken_off_go(
    home: Workspace,
    shared: SharedStore,
    swift_server: Swift,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swift_server.client().put_object(Bucket=bucket, Key="team/blobs/ab/abc", Body=b"half")
    later(monkeypatch)
    (stray,) = shared_holdings(shared, {}, days=30)
    assert (stray.what, stray.bytes) == ("files of uploads that were broken off", 4)
    remove(shared, [stray])
    assert shared_holdings(shared, {}, days=30) == []


def test_checkpoints_of_fine_tunes_go_when_they_are_old(
    shared: SharedStore, swift_server: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "team/checkpoints/run/last.json"
    swift_server.client().put_object(Bucket=bucket, Key=key, Body=b"{}")
    assert shared_holdings(shared, {}, days=30) == []
    later(monkeypatch)
    (old,) = shared_holdings(shared, {}, days=30)
    assert old.what == "checkpoints of fine-tunes"
    remove(shared, [old])
    assert shared_holdings(shared, {}, days=30) == []


def test_what_is_not_ours_below_the_prefix_is_never_touched(
    shared: SharedStore, swift_server: Swift, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swift_server.client().put_object(Bucket=bucket, Key="team/notes.txt", Body=b"mine")
    later(monkeypatch)
    remove(shared, shared_holdings(shared, {}, days=1))
    assert swift_server.client().head_object(Bucket=bucket, Key="team/notes.txt")


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything have been written long ago."""
    monkeypatch.setattr(shared_pruning, "_before", lambda _: time.time() + 60)
