"""Unquantized weights: passed on as they are, or cast, and said so."""

import json
from pathlib import Path

import pytest

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.optimizers.none import Unchanged, UnchangedArgs


def make(model: Path, dtype: str, out: Path, workspace: Workspace) -> dict[str, str]:
    artifact = Artifact(digest="sha256:0", format="safetensors", size=0).located_by(lambda _: model)
    out.mkdir()
    return Unchanged().optimize(
        artifact, artifact, UnchangedArgs.model_validate({"dtype": dtype}), out, workspace
    )


def save(folder: Path, shards: dict[str, dict[str, float]]) -> Path:
    """A model's files, each tensor filled with one number."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    for name, tensors in shards.items():
        save_file(
            {key: torch.full((2, 2), value) for key, value in tensors.items()},
            folder / name,
            {"format": "pt"},
        )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "torch_dtype": "float32"})
    )
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return folder


def test_weights_kept_as_they_are_are_linked_and_not_copied(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    assert make(tiny_model, "auto", tmp_path / "out", workspace) == {"dtype": "F32"}
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tiny_model / name).read_bytes()


def test_cast_weights_load_and_equal_the_rounded_ones(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    make(tiny_model, "bfloat16", tmp_path / "out", workspace)
    before = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").state_dict()
    assert all(torch.equal(after[name], weights.bfloat16()) for name, weights in before.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_source_is_left_alone(tiny_model: Path, tmp_path: Path, workspace: Workspace) -> None:
    before = (tiny_model / "config.json").read_bytes()
    make(tiny_model, "float16", tmp_path / "out", workspace)
    assert (tiny_model / "config.json").read_bytes() == before


def test_pickles_are_left_behind(tmp_path: Path, workspace: Workspace) -> None:
    make(
        save(tmp_path / "model", {"model.safetensors": {"a": 1.0}}),
        "auto",
        tmp_path / "out",
        workspace,
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_index_of_cast_shards_tells_their_new_size(
    tmp_path: Path, workspace: Workspace
) -> None:
    model = save(
        tmp_path / "model", {"model-1.safetensors": {"a": 1.0}, "model-2.safetensors": {"b": 2.0}}
    )
    index = {
        "metadata": {"total_size": 32},
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    make(model, "bfloat16", tmp_path / "out", workspace)
    told = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert told == {"metadata": {"total_size": 16}, "weight_map": index["weight_map"]}


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path, workspace: Workspace) -> None:
    model = save(tmp_path / "model", {"model.safetensors": {"fine": 1.0, "huge": 1e6}})
    with pytest.raises(BadInput, match=r"tensor huge .*choose bfloat16"):
        make(model, "float16", tmp_path / "out", workspace)


def test_only_what_is_cast_needs_room(
    tiny_model: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.core.disk.free_bytes", lambda folder: 1000)
    as_it_comes = UnchangedArgs(dtype="float32")
    Unchanged().check(tiny_model, as_it_comes, workspace)
    with pytest.raises(Unavailable, match=r"the result takes up to .* 1000 B are free"):
        Unchanged().check(tiny_model, UnchangedArgs(dtype="bfloat16"), workspace)


def test_a_model_that_is_released_as_it_came_names_what_ends_its_answers(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    make(tiny_model, "auto", tmp_path / "out", workspace)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    # llama.cpp stops at `<|endoftext|>`, which the tiny model itself does not name.
    assert written["eos_token_id"] == [0, 2]
