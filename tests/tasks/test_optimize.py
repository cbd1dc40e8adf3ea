"""Optimize: every variant by itself, checked before any work, never made twice."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.optimize import OptimizeArgs, Optimized, check, optimize


@pytest.fixture
def model(tiny_model: Path, workspace: Workspace) -> Artifact:
    return workspace.store.add(tiny_model, "safetensors", adopt=False)


@pytest.fixture
def data(tmp_path: Path, workspace: Workspace) -> Artifact:
    folder = tmp_path / "rows"
    folder.mkdir()
    row = json.dumps({"prompt": "hello", "completion": "world"}) + "\n"
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(row)
    return workspace.store.add(folder, "jsonl")


def args(*dtypes: str) -> OptimizeArgs:
    return OptimizeArgs.model_validate(
        {"variants": [{"kind": "none", "dtype": dtype} for dtype in dtypes]}
    )


def records(workspace: Workspace) -> list[Path]:
    return sorted((workspace.settings.home / "stages").rglob("*.json"))


def labels(optimized: Optimized) -> list[str]:
    return [variant.label for variant in optimized.variants]


def test_variants_come_in_the_order_of_the_recipe(
    model: Artifact, data: Artifact, workspace: Workspace
) -> None:
    made = optimize(model, data, args("float16", "auto", "bfloat16"), workspace)
    assert labels(made) == ["safetensors-float16", "safetensors", "safetensors-bfloat16"]
    assert all(workspace.store.is_whole(variant.artifact) for variant in made.variants)
    assert [variant.facts["dtype"] for variant in made.variants] == ["F16", "F32", "BF16"]


def test_variants_made_before_are_reused_one_by_one(
    model: Artifact, data: Artifact, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "weighbridge")
    first = optimize(model, data, args("auto", "bfloat16"), workspace)
    caplog.clear()
    second = optimize(model, data, args("bfloat16", "float16"), workspace)
    assert second.variants[0] == first.variants[1]
    told = [message for message in caplog.messages if message.startswith("variant ")]
    assert "reused" in told[0]
    assert "made in" in told[1]


def test_a_variant_whose_bytes_are_gone_is_made_again(
    model: Artifact, data: Artifact, workspace: Workspace
) -> None:
    first = optimize(model, data, args("bfloat16"), workspace).variants[0]
    workspace.store.remove(first.artifact.digest)
    assert (
        optimize(model, data, args("bfloat16"), workspace).variants[0].artifact.digest
        == first.artifact.digest
    )


def test_two_variants_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="two variants are called safetensors"):
        args("auto", "float16", "auto")


def test_no_variants_are_refused() -> None:
    with pytest.raises(ValidationError):
        OptimizeArgs(variants=[])


def test_an_unknown_optimizer_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="did you mean 'gguf'"):
        OptimizeArgs.model_validate({"variants": [{"kind": "ggfu"}]})


def test_every_variant_is_checked_before_the_first_is_made(
    model: Artifact, data: Artifact, workspace: Workspace
) -> None:
    mixed = OptimizeArgs.model_validate(
        {"variants": [{"kind": "none"}, {"kind": "gguf", "quantization": "Q4_K_M"}]}
    )
    with pytest.raises(BadInput, match="multiple of 256"):
        optimize(model, data, mixed, workspace)
    assert records(workspace) == []


def test_too_little_disk_is_said_before_work_starts(
    model: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.core.disk.free_bytes", lambda folder: 1000)
    for variant in ({"kind": "none"}, {"kind": "gguf"}):
        with pytest.raises(Unavailable, match="of disk, 1000 B are free; make room"):
            check(model.path, OptimizeArgs.model_validate({"variants": [variant]}), workspace)
