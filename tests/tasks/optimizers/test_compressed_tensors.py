"""Quantized weights for vLLM: proved from their tensors, loaded and asked; what cannot be right is
refused before.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import MACHINE_CACHE
from tests.warm.engines import WarmEngines
from tests.warm.scripts import WarmScripts
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import run
from weighbridge.core.safetensors_header import read_header
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.vllm import Vllm
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.encoding import encode, load_tokenizer
from weighbridge.tasks.optimizers import compressed_tensors as module
from weighbridge.tasks.optimizers import compressed_tensors_proof as proof
from weighbridge.tasks.optimizers.compressed_tensors import CompressedTensors, CompressedTensorsArgs

# Prints how far models' logits are from the first one's, over their spread, on the token rows of a
# file.
COMPARE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
rows = [torch.tensor([json.loads(line)]) for line in open(sys.argv[1])]
def logits(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.cat([model(row).logits[0] for row in rows])
plain = logits(sys.argv[2])
apart = [(logits(path) - plain).abs().mean() / plain.std() for path in sys.argv[3:]]
print("distances", [float(distance) for distance in apart])
"""
UNRELATED = 1.1
"""That distance between two models that know nothing of each other."""


@pytest.fixture
def data(tmp_path: Path, workspace: Workspace) -> Artifact:
    return add_rows(tmp_path / "rows", workspace)


def add_rows(folder: Path, workspace: Workspace) -> Artifact:
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [
            {
                "prompt": [{"role": "user", "content": f"Order {number}: the kettle leaks."}],
                "completion": [
                    {"role": "assistant", "content": f'{{"team": "billing", "order": {number}}}'}
                ],
            }
            for number in range(24)
        ]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return workspace.store.add(folder, "jsonl")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def args(**options: Any) -> CompressedTensorsArgs:
    return CompressedTensorsArgs.model_validate(options)


def changed(model: Path, folder: Path, **config: Any) -> Path:
    """The model with another configuration."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def distances(model: Artifact, data: Artifact, folder: Path, *made: Path) -> list[float]:
    """How far answers to validation rows are from the model's, told by the environment that can
    read both.
    """
    rows = encode(load_tokenizer(model.path), read_rows(data, "validation"))
    texts = folder / "rows.jsonl"
    texts.write_text("".join(f"{json.dumps([*row.prompt, *row.completion])}\n" for row in rows))
    python = ensure(CompressedTensors.lock or Path(), MACHINE_CACHE).python
    done = run(
        "comparing", [python, "-I", "-c", COMPARE, texts, model.path, *made], env=module.ENVIRONMENT
    )
    assert done.status == 0, done.output
    found: list[float] = json.loads(done.output.rpartition("distances ")[2])
    return found


def kinds(folder: Path, suffix: str) -> set[str]:
    """Number types of the tensors whose names end so."""
    header = read_header(folder / "model.safetensors")
    return {tensor["dtype"] for name, tensor in header.items() if name.endswith(suffix)}


# Arguments


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "W8A8"),
        ({"scheme": "W4A16"}, "W4A16"),
        ({"scheme": "W4A16", "algorithm": "gptq"}, "W4A16-gptq"),
        ({"scheme": "W4A16", "group_size": 32}, "W4A16-g32"),
        ({"scheme": "FP8_DYNAMIC"}, "FP8_DYNAMIC"),
    ],
)
def test_the_label_tells_one_variant_from_another(options: dict[str, Any], label: str) -> None:
    assert args(**options).label() == label


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"scheme": "FP8_DYNAMIC", "algorithm": "gptq"}, "gptq is for int weights"),
        ({"scheme": "W8A8", "group_size": 64}, "W8A8 has no groups"),
        ({"scheme": "W2A16"}, "W8A8"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        args(**options)


# Refused before time is spent


def test_a_width_that_the_groups_do_not_fit_is_refused_by_name(
    tiny_model: Path, workspace: Workspace
) -> None:
    with pytest.raises(
        BadInput, match=r"multiple of 128.*q_proj \(64\).* more; choose a smaller `group_size`"
    ):
        CompressedTensors().check(tiny_model, args(scheme="W4A16"), workspace)
    CompressedTensors().check(tiny_model, args(scheme="W4A16", group_size=32), workspace)
    CompressedTensors().check(tiny_model, args(scheme="W8A8"), workspace)


def test_layers_that_are_ignored_may_have_any_width(tiny_model: Path, workspace: Workspace) -> None:
    wide = args(scheme="W4A16", ignore=["lm_head", "re:.*(self_attn|gate_proj|up_proj).*"])
    CompressedTensors().check(tiny_model, wide, workspace)


def test_a_quantized_model_is_refused(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    quantized = changed(
        tiny_model, tmp_path / "quantized", quantization_config={"quant_method": "gptq"}
    )
    with pytest.raises(BadInput, match=r"quantized already \(gptq\); start from the unquantized"):
        CompressedTensors().check(quantized, args(), workspace)


def test_weights_that_would_silently_stay_are_refused(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    import torch
    from safetensors.torch import save_file

    folder = changed(tiny_model, tmp_path / "experts")
    save_file(
        {"model.layers.0.mlp.experts.gate_up": torch.zeros(2, 4, 4)}, folder / "more.safetensors"
    )
    with pytest.raises(
        BadInput, match=r"experts.gate_up belong to no linear layer and would stay as they are"
    ):
        CompressedTensors().check(folder, args(), workspace)


def test_fp8_is_refused_where_no_engine_runs_it(
    tiny_model: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "why_no_fp8", lambda device: f"no FP8 on {device}")
    with pytest.raises(
        Unavailable, match=r"making FP8_DYNAMIC: no FP8 on .*; leave it out, or choose W8A8"
    ):
        CompressedTensors().check(tiny_model, args(scheme="FP8_DYNAMIC"), workspace)


def test_what_this_machine_cannot_run_is_told_unasked(
    out: Path, data: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*unused: object) -> None:
        raise Unavailable("starting vllm", "the GPU is too old", "buy one")

    monkeypatch.setattr(Vllm, "check", refuse)
    assert module._ask(out, data, args(), workspace) == {"engine": "not asked: the GPU is too old"}


def test_an_unknown_architecture_is_refused(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    strange = changed(tiny_model, tmp_path / "strange", model_type="abacus")
    with pytest.raises(BadInput, match="abacus"):
        CompressedTensors().check(strange, args(), workspace)


# What is made


VARIANTS = {
    "int8": args(scheme="W8A8"),
    "int4 by gptq": args(scheme="W4A16", group_size=32, algorithm="gptq", calibration_rows=20),
    "int4 by rounding": args(scheme="W4A16", group_size=32),
    "fp8": args(scheme="FP8_DYNAMIC"),
}
NOT_ASKED = "int4 by rounding"
"""The variant that is there to be compared with; vLLM has read weights like it already."""


@dataclass(frozen=True)
class Quantized:
    """A variant of the tiny model, what was found of it, and how far it is from the model."""

    folder: Path
    facts: Mapping[str, str]
    distance: float


@pytest.fixture(scope="module")
def warm_scripts() -> None:
    """Nothing here but for what `quantized` says."""


@pytest.fixture(scope="module")
def quantized(
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    test_run: tuple[Path, int],
    warm_engines: WarmEngines,
) -> Mapping[str, Quantized]:
    """Make every variant, and compare all of them in one process: it imports PyTorch for that."""
    top = tmp_path_factory.mktemp("quantized")
    workspace = Workspace(Settings(home=top / "home", cache=MACHINE_CACHE))
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    data = add_rows(top / "rows", workspace)
    facts = {}
    # The first one as a user has it made, the others with what that has imported.
    with contextlib.ExitStack() as rest:
        for name, asked in VARIANTS.items():
            (top / name).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                if name == NOT_ASKED:
                    patch.setattr(module, "_ask", lambda *unused: {})
                facts[name] = CompressedTensors().optimize(
                    model, data, asked, top / name, workspace
                )
            if len(facts) == 1:
                rest.enter_context(WarmScripts(*test_run))
    apart = distances(model, data, top, *(top / name for name in VARIANTS))
    return {
        name: Quantized(top / name, facts[name], distance)
        for name, distance in zip(VARIANTS, apart, strict=True)
    }


@pytest.mark.slow
def test_int8_is_stored_as_asked_stays_near_and_answers_on_vllm(
    quantized: Mapping[str, Quantized], tiny_model: Path
) -> None:
    made = quantized["int8"]
    assert made.facts["quantized_layers"] == "14"
    # 8 bits, and 16 for the scale of every row of 64 or 128 weights.
    assert 8.1 < float(made.facts["bits_per_weight"]) < 8.3
    assert made.facts["engine"].startswith("vllm (vllm")
    assert kinds(made.folder, "proj.weight") == {"I8"}
    tokenizer = "tokenizer.json"
    assert (made.folder / tokenizer).read_bytes() == (tiny_model / tokenizer).read_bytes()
    assert 0 < made.distance < UNRELATED / 10


@pytest.mark.slow
def test_int4_by_gptq_comes_nearer_than_by_rounding_and_answers_on_vllm(
    quantized: Mapping[str, Quantized],
) -> None:
    made = quantized["int4 by gptq"]
    assert made.facts["calibration_rows"] == "20"
    # 4 bits, 16 for the scale of every 32 weights, and the shape of each layer.
    assert 4.5 < float(made.facts["bits_per_weight"]) < 4.6
    assert made.facts["engine"].startswith("vllm (vllm")
    assert kinds(made.folder, "weight_packed") == {"I32"}
    assert 0 < made.distance < quantized["int4 by rounding"].distance < UNRELATED


@pytest.mark.slow
def test_fp8_is_stored_as_asked_stays_near_and_answers_on_vllm(
    quantized: Mapping[str, Quantized],
) -> None:
    made = quantized["fp8"]
    assert made.facts["engine"].startswith("vllm (vllm")
    assert kinds(made.folder, "proj.weight") == {"F8_E4M3"}
    assert 0 < made.distance < UNRELATED / 4


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A W8A8 model's files, without the model: what its headers and configuration would say."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("made")
    layers = proof.linear_layers(tiny_model, ["lm_head"], "test")
    tensors = {
        f"{layer.name}.weight": torch.zeros(layer.rows, layer.width, dtype=torch.int8)
        for layer in layers
    }
    tensors |= {
        f"{layer.name}.weight_scale": torch.ones(layer.rows, 1, dtype=torch.bfloat16)
        for layer in layers
    }
    save_file(tensors, folder / "model.safetensors")
    group = {
        "weights": {"num_bits": 8, "type": "int", "group_size": None},
        "input_activations": {"num_bits": 8},
    }
    told = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps({"quantization_config": told}))
    return folder


def measure(folder: Path, model: Path) -> dict[str, str]:
    return proof.measure(
        folder, proof.linear_layers(model, ["lm_head"], "test"), args().stored, "proving W8A8"
    )


def test_bits_per_weight_are_counted_with_their_scales(made: Path, tiny_model: Path) -> None:
    # Per layer: 4 matrices of 64 x 64, 2 of 128 x 64, 1 of 64 x 128, and 16 bits for each of their
    # rows.
    weights, rows = 4 * 64 * 64 + 3 * 64 * 128, 4 * 64 + 2 * 128 + 64
    assert measure(made, tiny_model)["bits_per_weight"] == f"{8 + 16 * rows / weights:.3f}"


@pytest.mark.parametrize("change", ["skipped", "wider", "scaleless"])
def test_a_layer_that_was_silently_skipped_is_a_failure(
    change: str, made: Path, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(made, tmp_path / "made")
    tensors, layer = load_file(made / "model.safetensors"), "model.layers.1.mlp.up_proj"
    if change == "skipped":
        tensors[f"{layer}.weight"] = torch.zeros(128, 64, dtype=torch.bfloat16)
    if change == "wider":
        tensors[f"{layer}.weight"] = torch.zeros(128, 128, dtype=torch.int8)
    if change == "scaleless":
        del tensors[f"{layer}.weight_scale"]
    save_file(tensors, tmp_path / "made" / "model.safetensors")
    with pytest.raises(BadInput, match=r"it was not done as asked: model\.layers\.1\.mlp\.up_proj"):
        measure(tmp_path / "made", tiny_model)


@pytest.mark.parametrize(
    "told", [None, {"quant_method": "compressed-tensors", "config_groups": {}}]
)
def test_a_configuration_that_does_not_tell_is_a_failure(
    told: object, made: Path, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "made")
    (tmp_path / "made" / "config.json").write_text(json.dumps({"quantization_config": told}))
    with pytest.raises(BadInput, match=r"its config\.json says"):
        measure(tmp_path / "made", tiny_model)
