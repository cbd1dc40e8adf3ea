"""The artifact store: whole or not there, named by content."""

import os
from pathlib import Path

import pytest

from weighbridge.core.artifact import File, digest_of
from weighbridge.core.errors import Unavailable
from weighbridge.core.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def folder(tmp_path: Path, **files: str) -> Path:
    root = tmp_path / "source"
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_same_bytes_have_the_same_digest_whatever_their_order_and_origin(
    store: Store, tmp_path: Path
) -> None:
    first = store.add(
        folder(tmp_path / "1", a="x", sub__b="y"), "jsonl", {"uri": "one"}, adopt=False
    )
    second = store.add(
        folder(tmp_path / "2", sub__b="y", a="x"), "jsonl", {"uri": "two"}, adopt=False
    )
    assert first.digest == second.digest
    assert second.origin == {"uri": "two"}


def test_digest_is_that_of_sha256sum_output() -> None:
    files = [File(path="b", size=1, sha256="22"), File(path="a", size=1, sha256="11")]
    import hashlib

    assert digest_of(files) == "sha256:" + hashlib.sha256(b"11  a\n22  b\n").hexdigest()


def test_copying_leaves_the_source_and_is_not_changed_with_it(store: Store, tmp_path: Path) -> None:
    source = folder(tmp_path, a="before")
    artifact = store.add(source, "jsonl", adopt=False)
    (source / "a").write_text("after")
    assert (artifact.path / "a").read_text() == "before"
    assert store.is_whole(artifact)


def test_files_of_an_artifact_are_read_only(store: Store, tmp_path: Path) -> None:
    artifact = store.add(folder(tmp_path, a="x"), "jsonl")
    assert (artifact.path / "a").stat().st_mode & 0o222 == 0


def test_a_program_stays_executable(store: Store, tmp_path: Path) -> None:
    source = folder(tmp_path, program="#!/bin/sh")
    (source / "program").chmod(0o755)
    artifact = store.add(source, "bento", adopt=False)
    assert (artifact.path / "program").stat().st_mode & 0o777 == 0o555


def test_equal_files_of_two_artifacts_take_room_once(store: Store, tmp_path: Path) -> None:
    first = store.add(folder(tmp_path / "1", tokenizer="t", weights="one"), "safetensors")
    second = store.add(folder(tmp_path / "2", tokenizer="t", weights="two"), "safetensors")
    assert (first.path / "tokenizer").stat().st_ino == (second.path / "tokenizer").stat().st_ino


@pytest.mark.parametrize("damage", ["remove", "truncate", "overwrite"])
def test_damage_is_seen_and_adding_again_heals(store: Store, tmp_path: Path, damage: str) -> None:
    artifact = store.add(folder(tmp_path, a="content"), "jsonl", adopt=False)
    victim = artifact.path / "a"
    if damage == "remove":
        victim.unlink()
    else:
        victim.chmod(0o644)
        victim.write_text("c" if damage == "truncate" else "CONTENT")
    assert not store.is_whole(artifact)
    again = store.add(folder(tmp_path, a="content"), "jsonl", adopt=False)
    assert again.digest == artifact.digest
    assert store.is_whole(again)
    assert (again.path / "a").read_text() == "content"


def test_touching_a_file_without_changing_it_is_no_damage(store: Store, tmp_path: Path) -> None:
    artifact = store.add(folder(tmp_path, a="content"), "jsonl")
    (artifact.path / "a").touch()
    assert store.is_whole(artifact)


def test_interrupted_adding_leaves_no_artifact(store: Store, tmp_path: Path) -> None:
    def interrupted() -> None:
        with store.scratch() as scratch:
            (scratch / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not list((store.root / "tmp").iterdir())


def test_removing_keeps_what_others_link_to(store: Store, tmp_path: Path) -> None:
    first = store.add(folder(tmp_path / "1", shared="t", own="one"), "safetensors")
    second = store.add(folder(tmp_path / "2", shared="t", own="two"), "safetensors")
    own = store.files(first.digest)[0]
    store.remove(first.digest)
    assert store.blob(own.sha256) is None
    assert store.is_whole(second)
    with pytest.raises(Unavailable, match="not in the store"):
        store.files(first.digest)


def test_damage_that_leaves_size_and_date_is_seen_by_reading_and_remembered(
    store: Store, tmp_path: Path
) -> None:
    artifact = store.add(folder(tmp_path, a="content", b="other"), "jsonl", adopt=False)
    victim = artifact.path / "a"
    status = victim.stat()
    victim.chmod(0o644)
    victim.write_text("CONTENT")
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.is_whole(artifact), "its date says so"
    assert store.damaged(artifact.digest) == ["a"]
    assert not store.is_whole(artifact)
    [digest] = [file.sha256 for file in store.files(artifact.digest) if file.path == "a"]
    assert [blob.name for blob in store.blobs() if store.is_damaged(blob)] == [digest]
    again = store.add(folder(tmp_path, a="content", b="other"), "jsonl", adopt=False)
    assert store.damaged(again.digest) == []
    assert not any(map(store.is_damaged, store.blobs()))


def test_what_is_damaged_is_not_put_together_again_out_of_the_same_damage(
    store: Store, tmp_path: Path
) -> None:
    artifact = store.add(folder(tmp_path, a="content"), "jsonl", adopt=False)
    files = store.files(artifact.digest)
    # Tree and blob are one file.
    (artifact.path / "a").chmod(0o644)
    (artifact.path / "a").write_text("CONTENT")
    with pytest.raises(Unavailable, match="a is damaged or gone in the store; make or fetch it"):
        store.assemble(files, "jsonl")
    store.put_blob(folder(tmp_path, a="content") / "a", adopt=False)
    again = store.assemble(files, "jsonl")
    assert (again.path / "a").read_text() == "content"
    assert store.is_whole(again)
