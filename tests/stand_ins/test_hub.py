"""The stand-in is a hub to the clients that people use."""

import hashlib
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from tests.stand_ins.hub import Hub

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"x" * 100_000,
    "a/b.txt": b"text",
}


def test_the_real_client_fetches_a_whole_repository(tmp_path: Path) -> None:
    with Hub() as hub:
        commit = hub.add("org/name", FILES)
        folder = Path(snapshot_download("org/name", endpoint=hub.url, cache_dir=tmp_path))
    assert folder.name == commit
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES


def test_the_real_client_fetches_a_file_of_a_data_set(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.add("org/name", {"train.jsonl": b"{}"}, kind="datasets")
        file = hf_hub_download(
            "org/name", "train.jsonl", repo_type="dataset", endpoint=hub.url, cache_dir=tmp_path
        )
    assert Path(file).read_bytes() == b"{}"


def test_the_real_client_reads_a_tree_with_digests() -> None:
    with Hub() as hub:
        hub.add("org/name", FILES)
        tree = HfApi(endpoint=hub.url).list_repo_tree("org/name", recursive=True)
        lfs = {entry.path: entry.lfs for entry in tree if isinstance(entry, RepoFile)}
    assert lfs["config.json"] is None
    assert lfs["model.safetensors"]
    assert lfs["model.safetensors"].sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()


def test_missing_repositories_and_revisions_are_told_apart() -> None:
    with Hub() as hub:
        hub.add("org/name", FILES)
        api = HfApi(endpoint=hub.url)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/other")
        with pytest.raises(RevisionNotFoundError):
            api.model_info("org/name", revision="gone")


def test_a_branch_moves_and_its_commits_stay() -> None:
    with Hub() as hub:
        first = hub.add("org/name", FILES)
        second = hub.add("org/name", {**FILES, "a/b.txt": b"other"})
        api = HfApi(endpoint=hub.url)
        assert api.model_info("org/name").sha == second
        assert api.model_info("org/name", revision=first).sha == first
