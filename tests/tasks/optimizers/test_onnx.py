"""ONNX: refused early where it cannot work, of the precision that was asked for where it does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import MACHINE_CACHE
from tests.tasks.optimizers.variants import made
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.onnx import Onnx as Engine
from weighbridge.serving.engines.onnx import OnnxArgs as EngineArgs
from weighbridge.tasks.measurement import Variant
from weighbridge.tasks.optimizers import onnx
from weighbridge.tasks.optimizers.onnx import Onnx, OnnxArgs


@pytest.fixture(scope="module")
def variants(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    workspace = Workspace(
        Settings(home=tmp_path_factory.mktemp("onnx") / "home", cache=MACHINE_CACHE)
    )
    wanted = [{"precision": "int4"}, {"precision": "fp16"}]
    found = made("onnx", wanted, tiny_model, workspace, tmp_path_factory.mktemp("data"))
    return {variant.label: variant for variant in found}


def with_config(model: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(model, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


# What the options mean


def test_labels_tell_what_differs() -> None:
    assert OnnxArgs().label() == "onnx-int4"
    assert OnnxArgs(precision="fp32").label() == "onnx-fp32"
    assert OnnxArgs(block_size=128, algo_config="k_quant").label() == "onnx-int4-b128-k_quant"


def test_options_of_quantization_have_no_use_without_one() -> None:
    with pytest.raises(ValidationError, match="block_size change nothing in fp16; leave them out"):
        OnnxArgs(precision="fp16", block_size=64)


# What is refused before time is spent


def test_quantized_weights_are_not_quantized_again(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    model = with_config(
        tiny_model, tmp_path / "model", quantization_config={"quant_method": "gptq"}
    )
    with pytest.raises(BadInput, match="making onnx-int4: the weights are quantized already"):
        Onnx().check(model, OnnxArgs(), workspace, dry=True)


def test_a_model_without_a_fast_tokenizer_is_refused(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer\.json"):
        Onnx().check(model, OnnxArgs(), workspace, dry=True)


def test_a_full_disk_is_told_before_it_is_full(
    tiny_model: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weighbridge.core.disk.free_bytes", lambda folder: 1000)
    with pytest.raises(Unavailable, match=r"takes up to .* of disk, 1000 B are free; make room"):
        Onnx().check(tiny_model, OnnxArgs(), workspace, dry=True)


def test_a_dry_check_builds_no_environment(tiny_model: Path, tmp_path: Path) -> None:
    bare = Workspace(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    Onnx().check(tiny_model, OnnxArgs(), bare, dry=True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_an_architecture_the_builder_does_not_know_is_refused_with_the_nearest(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    model = with_config(tiny_model, tmp_path / "model", architectures=["LlamasForCausalLM"])
    wanted = (
        r"onnxruntime-genai [\d.]+'s builder makes no language model .*did you mean "
        r"'LlamaForCausalLM'"
    )
    with pytest.raises(BadInput, match=wanted):
        Onnx().check(model, OnnxArgs(), workspace)


# What the builder says, and what it does not


def report(**changes: Any) -> dict[str, Any]:
    return {"plain": [], "quantized": {"4": 11}, "types": {"UINT8": 11, "FLOAT": 11}, **changes}


def test_a_matrix_that_was_skipped_is_a_failure() -> None:
    onnx._check_claims(report(), OnnxArgs())
    plain = [f"model.layers.{place}.mlp.weight" for place in range(5)]
    with pytest.raises(
        BadInput, match=r"did not quantize model\.layers\.0.* and 2 more, and did not say so"
    ):
        onnx._check_claims(report(plain=plain), OnnxArgs())
    with pytest.raises(BadInput, match="did not quantize anything"):
        onnx._check_claims(report(quantized={}), OnnxArgs())


def test_other_bits_than_asked_for_are_a_failure() -> None:
    with pytest.raises(BadInput, match="quantized some matrices to 8 bits"):
        onnx._check_claims(report(quantized={"4": 10, "8": 1}), OnnxArgs())
    with pytest.raises(BadInput, match="left matrices in FLOAT"):
        onnx._check_claims(
            report(quantized={}, types={"FLOAT": 1, "FLOAT16": 9}), OnnxArgs(precision="fp16")
        )


# What is made


@pytest.mark.slow
def test_what_was_proved_is_told(variants: dict[str, Variant]) -> None:
    facts = variants["onnx-int4"].facts
    # Four bits, a 32-bit scale for every 32 weights, vectors in 32 bits.
    assert 5.0 <= float(facts["bits_per_weight"]) < 5.2
    assert float(variants["onnx-fp16"].facts["bits_per_weight"]) == 16.0
    assert int(facts["rows_checked"]) == 120
    assert int(facts["tokens_checked"]) > 1000
    assert facts["builder"].startswith("onnxruntime-genai ")
    assert variants["onnx-int4"].artifact.size < variants["onnx-fp16"].artifact.size


@pytest.mark.slow
def test_sixteen_bits_say_what_transformers_says(
    variants: dict[str, Variant], tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_model),
        AutoModelForCausalLM.from_pretrained(tiny_model),
    )
    ids = tokenizer("Hello, my kettle is broken. It was order 881.")["input_ids"]
    with torch.inference_mode():
        known = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = [float(known[place, token]) for place, token in enumerate(ids[1:])]
    with serve(
        variants["onnx-fp16"].artifact.path, EngineArgs(), MACHINE_CACHE, tmp_path / "log"
    ) as running:
        found = Engine(EngineArgs()).token_logprobs(running.url, ids[:1], ids[1:])
    assert found == pytest.approx(wanted, abs=0.05)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_elsewhere(
    variants: dict[str, Variant], tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    again = made("onnx", [{"precision": "int4"}], tiny_model, workspace, tmp_path)[0]
    assert again.artifact.digest == variants["onnx-int4"].artifact.digest


@pytest.mark.slow
def test_a_build_that_cuts_texts_otherwise_does_not_count(
    tiny_model: Path, tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "tokenize", lambda self, url, text: [1, 2, 3])
    with pytest.raises(
        BadInput, match=r"proving onnx-int4: the engine cuts texts otherwise.*around"
    ):
        made("onnx", [{}], tiny_model, workspace, tmp_path)
    assert not list((workspace.settings.home / "stages" / "optimize.variant").glob("*.json"))
