"""Manifests as files that Argo CD and Flux apply."""

from pathlib import Path

import pytest
import yaml

from tests.serving.targets.kubernetes.releases import GATEWAY, RELEASE, arguments
from weighbridge.core.errors import BadInput
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.core.workspace import Workspace
from weighbridge.serving.targets.kubernetes.args import KubernetesArgs
from weighbridge.serving.targets.kubernetes.fetch import fetch
from weighbridge.serving.targets.kubernetes.files import HEADER, as_yaml, write_manifests
from weighbridge.serving.targets.kubernetes.manifests import rolling_manifests


def write(folder: Path, args: KubernetesArgs) -> dict[str, bytes]:
    """Write a target's manifests, and return what the folder holds then."""
    write_manifests(folder, rolling_manifests("demo", args, RELEASE), {"role.yaml": "kind: Role\n"})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_kustomization_lists_every_manifest_and_nothing_else(tmp_path: Path) -> None:
    files = write(tmp_path, arguments(gateway=GATEWAY))
    listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
    assert sorted(listed) == sorted(files.keys() - {"kustomization.yaml", "role.yaml"})
    manifests = [yaml.safe_load(files[name]) for name in listed]
    assert manifests == rolling_manifests("demo", arguments(gateway=GATEWAY), RELEASE)


def test_the_same_release_gives_the_same_files(tmp_path: Path) -> None:
    assert write(tmp_path / "a", arguments()) == write(tmp_path / "b", arguments())


def test_what_is_no_longer_there_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text("kind: ConfigMap\n")
    assert "httproute-demo.yaml" in write(tmp_path, arguments(gateway=GATEWAY))
    left = write(tmp_path, arguments())
    assert "httproute-demo.yaml" not in left
    assert "ours.yaml" in left


def test_a_kustomization_of_somebody_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\n")
    with pytest.raises(BadInput, match="somebody else wrote"):
        write(tmp_path, arguments())
    assert [path.name for path in tmp_path.iterdir()] == ["kustomization.yaml"]


def test_values_stand_where_they_are_used(tmp_path: Path) -> None:
    files = write(tmp_path, arguments())
    assert not [name for name, text in files.items() if b"&id" in text]
    assert all(text.startswith(HEADER.encode()) for text in files.values())
    assert as_yaml({"version": "7"}) == "version: '7'\n"


def test_a_fetched_bento_is_where_the_server_looks_for_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "bento.yaml").write_text("name: demo\n")
    workspace = Workspace(Settings(home=tmp_path / "home", store=""))
    digest = Store(workspace.settings.home / "store").add(made, "bento", adopt=False).digest
    folder = tmp_path / "bento" / "served"
    fetch(digest, folder, workspace)
    assert (folder / "bento.yaml").read_text() == "name: demo\n"
    # A container that starts anew finds it there.
    fetch(digest, folder, workspace)
