"""package: the winner as a Bento that has answered."""

import subprocess
from pathlib import Path

import pytest

from tests.serving import bentos
from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process
from weighbridge.tasks.package import PackageArgs, lineage_of, package

pytestmark = pytest.mark.usefixtures("warm_services")


def test_packages_and_proves_the_winner_once(workspace: Workspace) -> None:
    candidate = bentos.candidate(workspace)
    lineage = {"base": "sha256:1", "recipe": "demo"}
    packaged = package(candidate, "Demo", "3", lineage, PackageArgs(start_timeout=120), workspace)
    assert packaged.tag.startswith("demo:3-")
    assert packaged.start_seconds > 0
    assert workspace.store.is_whole(packaged.artifact)
    assert lineage_of(packaged.artifact.path) == lineage
    release = packaged.release("Demo", "3")
    assert (release.bento, release.digest) == (packaged.tag, packaged.artifact.digest)

    again = package(candidate, "Demo", "3", lineage, PackageArgs(start_timeout=120), workspace)
    assert (again.tag, again.digest) == (packaged.tag, packaged.digest)


def candidate_lock() -> Path:
    from weighbridge.serving.engines.llama_cpp import LlamaCpp

    return LlamaCpp.locks["cpu"]


def test_a_bento_that_does_not_answer_does_not_count(workspace: Workspace) -> None:
    candidate = bentos.candidate(workspace, whole=False)
    with pytest.raises(Unavailable, match="ended before it answered"):
        package(candidate, "Demo", "3", {}, PackageArgs(start_timeout=300), workspace)


def test_the_exported_bento_needs_no_bentoml_store(workspace: Workspace, tmp_path: Path) -> None:
    what = bentos.contents(workspace)
    exported = bento.export(
        bento.build(what, workspace.settings.cache), what.model, workspace.store, {}
    )
    copied = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", str(exported.path), str(copied)], check=True)
    subprocess.run(["rm", "-rf", str(bento.bentoml_home())], check=True)
    with bento_process.serve(copied, workspace.settings.cache, tmp_path / "log", 120) as proof:
        assert proof.seconds > 0
