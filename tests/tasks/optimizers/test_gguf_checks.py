"""GGUF: what the options mean, and what is refused early where it cannot work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import MACHINE_CACHE
from tests.tasks.optimizers.pre_tokenizers import BYTES, bpe, split
from tests.tasks.optimizers.variants import made
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.tasks.optimizers import gguf_checks
from weighbridge.tasks.optimizers.gguf import Gguf, GgufArgs
from weighbridge.tasks.optimizers.gguf_quantizations import QUANTIZATIONS


def test_an_unknown_quantization_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"no quantization 'Q4_KM'; did you mean 'Q4_K_M'"):
        GgufArgs(quantization="Q4_KM")


def test_quantizations_are_known_in_small_letters_too() -> None:
    assert GgufArgs(quantization="q4_k_m").label() == "gguf-Q4_K_M"


def test_an_importance_matrix_has_no_use_at_eight_bits() -> None:
    with pytest.raises(ValidationError, match="changes nothing in Q8_0"):
        GgufArgs(quantization="Q8_0", imatrix=True)


def test_two_bits_without_an_importance_matrix_are_refused() -> None:
    with pytest.raises(ValidationError, match="set `imatrix: true`"):
        GgufArgs(quantization="IQ2_XXS")


def test_a_variant_with_its_adapter_beside_it_has_a_name_of_its_own() -> None:
    assert GgufArgs(quantization="F16", adapter=True).label() == "gguf-F16-adapter"


def test_a_variant_with_an_importance_matrix_has_a_name_of_its_own() -> None:
    assert GgufArgs(quantization="Q4_0", imatrix=True).label() == "gguf-Q4_0-imatrix"


def with_config(model: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(model, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **changes}))
    return to


@pytest.mark.slow
def test_an_architecture_the_converter_does_not_know_is_refused_with_the_nearest(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    model = with_config(tiny_model, tmp_path / "model", architectures=["Qwen9ForCausalLM"])
    with pytest.raises(
        BadInput,
        match=r"does not know the architecture Qwen9ForCausalLM; the nearest .*Qwen\d\w*For",
    ):
        Gguf().check(model, GgufArgs(), workspace)


def test_rows_that_k_quants_cannot_cut_are_listed(tiny_model: Path, workspace: Workspace) -> None:
    with pytest.raises(
        BadInput, match=r"multiple of 256.*model\.embed_tokens\.weight \(64\).* and \d+ more"
    ):
        Gguf().check(tiny_model, GgufArgs(quantization="Q4_K_M"), workspace)


def test_a_dry_check_fetches_nothing(tiny_model: Path, tmp_path: Path) -> None:
    bare = Workspace(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    Gguf().check(tiny_model, GgufArgs(), bare, dry=True)
    assert not (tmp_path / "cache").exists()


def test_missing_tools_are_one_line_with_the_command_that_helps(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bare = Workspace(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    wanted = GgufArgs(quantization="Q4_K_M", imatrix=True, allow_fallback=True)
    line = (
        "making gguf-Q4_K_M-imatrix: llama-quantize and llama-imatrix are neither built nor on "
        "the PATH; "
        "run: weighbridge engines install llama_cpp --native"
    )
    with pytest.raises(Unavailable) as caught:
        Gguf().check(tiny_model, wanted, bare)
    assert str(caught.value) == line


def with_tokenizer(model: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(model, to)
    tokenizer = json.loads((to / "tokenizer.json").read_text())
    (to / "tokenizer.json").write_text(json.dumps({**tokenizer, **changes}))
    return to


@pytest.mark.slow
def test_a_model_with_another_pre_tokenizer_is_refused_in_one_line(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    steps = bpe(split(r"\w+|\W+"), BYTES)["pre_tokenizer"]
    model = with_tokenizer(tiny_model, tmp_path / "model", pre_tokenizer=steps)
    with pytest.raises(BadInput, match=r"making gguf-Q8_0: .*no pre-tokenizer like") as caught:
        made("gguf", [{}], model, workspace, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_conversion_that_cuts_texts_otherwise_does_not_count(
    tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    model = with_tokenizer(tiny_model, tmp_path / "model", normalizer={"type": "Lowercase"})
    with pytest.raises(
        BadInput, match=r"proving gguf-Q8_0: the engine cuts texts otherwise.*around"
    ) as caught:
        made("gguf", [{}], model, workspace, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((workspace.settings.home / "stages" / "optimize.variant").glob("*.json"))


@pytest.mark.slow
def test_our_table_of_quantizations_is_llama_cpps() -> None:
    constants = (llama_cpp_native.source(MACHINE_CACHE) / "gguf-py/gguf/constants.py").read_text()
    for name, quantization in QUANTIZATIONS.items():
        named = f"ALL_{name}" if name == "F32" else f"MOSTLY_{name}"
        line = next(line for line in constants.splitlines() if line.split("=")[0].strip() == named)
        assert int(line.split("=")[1].split("#")[0]) == quantization.file_type


@pytest.mark.slow
def test_the_converters_architectures_are_read_from_its_sources() -> None:
    known = gguf_checks.known_architectures(llama_cpp_native.source(MACHINE_CACHE))
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"} <= set(known)


def test_the_base_holds_the_weights_without_loss(tiny_model: Path) -> None:
    assert gguf_checks.base_type(tiny_model) == "F32"


def test_a_model_without_an_architecture_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = with_config(tiny_model, tmp_path / "model", architectures=None)
    with pytest.raises(BadInput, match="names no `architectures`"):
        gguf_checks.check_architecture(model, MACHINE_CACHE, "making gguf-Q8_0")
