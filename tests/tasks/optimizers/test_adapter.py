"""Base and adapter side by side: linked, told apart by digest, refused where nobody knows what was
merged.
"""

from pathlib import Path

import pytest

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.optimizers.adapter import Adapter, AdapterArgs


@pytest.fixture
def base(tiny_model: Path, workspace: Workspace) -> Artifact:
    return workspace.store.add(tiny_model, "safetensors", adopt=False)


@pytest.fixture
def adapter(tmp_path: Path, workspace: Workspace) -> Artifact:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return workspace.store.add(folder, "peft")


def make(merged: Artifact, workspace: Workspace, folder: Path) -> dict[str, str]:
    folder.mkdir()
    return Adapter().optimize(merged, merged, AdapterArgs(), folder, workspace)


def test_the_bases_files_are_the_stores_own(
    base: Artifact, adapter: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    merged = base.model_copy(update={"origin": {"base": base.digest, "adapter": adapter.digest}})
    facts = make(merged, workspace, tmp_path / "out")
    assert facts == {"base": base.digest, "adapter": adapter.digest}
    assert (tmp_path / "out" / "model.safetensors").samefile(base.path / "model.safetensors")
    (folder,) = (tmp_path / "out" / "adapters").iterdir()
    assert folder.name == adapter.short
    assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"


def test_weights_that_nothing_tells_the_parts_of_are_refused(
    base: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="nothing tells which base and which adapter"):
        make(base, workspace, tmp_path / "out")


def test_a_part_that_is_gone_is_told(
    base: Artifact, adapter: Artifact, workspace: Workspace, tmp_path: Path
) -> None:
    merged = base.model_copy(update={"origin": {"base": base.digest, "adapter": adapter.digest}})
    workspace.store.remove(adapter.digest)
    with pytest.raises(Unavailable, match="not in the store"):
        make(merged, workspace, tmp_path / "out")
