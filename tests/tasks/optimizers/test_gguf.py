"""GGUF: faithful to the model, and the same bytes each time."""

import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import adapters
from tests.conftest import MACHINE_CACHE
from tests.tasks.optimizers.rows import write_rows
from tests.tasks.optimizers.variants import made
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure
from weighbridge.core.gguf_header import read_header
from weighbridge.core.processes import run
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.llama_cpp import LlamaCppArgs
from weighbridge.serving.openai_client import Client
from weighbridge.tasks.measurement import Variant
from weighbridge.tasks.optimizers import gguf_conversion
from weighbridge.tasks.optimizers.gguf import Gguf, GgufArgs
from weighbridge.tasks.optimizers.gguf_conversion import SCRIPTS

native_tools = pytest.mark.skipif(
    llama_cpp_native.tool("llama-imatrix", MACHINE_CACHE) is None,
    reason=f"not built: {llama_cpp_native.INSTALL}",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One workspace for all tests of this module, so that one conversion serves them all."""
    return Workspace(Settings(home=tmp_path_factory.mktemp("gguf") / "home", cache=MACHINE_CACHE))


@pytest.fixture(scope="module")
def variants(
    tiny_model: Path, shared: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Variant]:
    """The three variants of the demo, of the tiny model."""
    wanted = [{"quantization": name} for name in ("F16", "Q8_0", "Q4_0")]
    found = made("gguf", wanted, tiny_model, shared, tmp_path_factory.mktemp("data"))
    return {variant.label: variant for variant in found}


def types_in(variant: Variant) -> dict[str, str]:
    header = read_header(variant.artifact.path / "model.gguf")
    return {tensor.name: tensor.type for tensor in header.tensors}


@pytest.mark.slow
def test_weights_have_the_wanted_precision_and_vectors_stay_wide(
    variants: dict[str, Variant],
) -> None:
    types = types_in(variants["gguf-Q4_0"])
    assert types["blk.0.ffn_down.weight"] == "Q4_0"
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert set(types_in(variants["gguf-F16"]).values()) == {"F16", "F32"}
    assert set(types_in(variants["gguf-Q8_0"]).values()) == {"Q8_0", "F32"}


@pytest.mark.slow
def test_our_precisions_are_the_converters_own_bytes(
    variants: dict[str, Variant], tiny_model: Path, shared: Workspace, tmp_path: Path
) -> None:
    python = ensure(Gguf.lock or Path(), MACHINE_CACHE).python
    name = f"weighbridge-{shared.store.add(tiny_model, 'safetensors', adopt=False).short}"
    (folder := tmp_path / "model").symlink_to(tiny_model)
    script: list[str | Path] = [
        python,
        "-P",
        SCRIPTS / "convert.py",
        llama_cpp_native.source(MACHINE_CACHE),
        folder,
    ]
    assert (
        run(
            "the converter",
            [*script, tmp_path / "model.gguf", "q8_0", name, tmp_path / "report", "2"],
        ).status
        == 0
    )
    ours = variants["gguf-Q8_0"].artifact.path / "model.gguf"
    assert (tmp_path / "model.gguf").read_bytes() == ours.read_bytes()


@pytest.mark.slow
def test_a_model_is_converted_and_its_tokens_compared_once_for_all_variants(
    variants: dict[str, Variant], shared: Workspace
) -> None:
    stages = shared.settings.home / "stages"
    assert len(list((stages / "optimize.gguf_base").glob("*.json"))) == 1
    assert len(list((stages / "optimize.gguf_tokens").glob("*.json"))) == 1
    assert len(list((stages / "optimize.variant").glob("*.json"))) >= len(variants)


@pytest.mark.slow
def test_what_was_proved_is_told(variants: dict[str, Variant]) -> None:
    facts = variants["gguf-Q4_0"].facts
    assert int(facts["rows_checked"]) == 120
    assert int(facts["tokens_checked"]) > 1000
    assert 4.5 < float(facts["bits_per_weight"]) < 8.5
    assert llama_cpp_native.VERSION in facts["converter"]
    assert facts["pre_tokenizer_known_by"] == "its pattern"


@pytest.mark.slow
def test_everything_that_renders_a_prompt_lies_beside_the_weights(
    variants: dict[str, Variant],
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(variants["gguf-Q8_0"].artifact.path / "tokenizer")
    assert "hello" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False
    )


@pytest.mark.slow
def test_the_engine_says_what_transformers_says(
    variants: dict[str, Variant], tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat = [{"role": "user", "content": "hello there"}]
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny_model),
        AutoModelForCausalLM.from_pretrained(tiny_model),
    )
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        whole = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    expected = tokenizer.decode(whole[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    args = LlamaCppArgs(parallel=1, threads=1)
    with serve(
        variants["gguf-F16"].artifact.path, args, MACHINE_CACHE, tmp_path / "log"
    ) as running:
        answer = Client(running.url).ask(chat, max_tokens=12)
    assert answer.text.strip() == expected.strip()


@pytest.mark.slow
def test_an_adapter_beside_its_base_answers_as_the_two_do_in_transformers(
    tiny_model: Path, shared: Workspace, tmp_path: Path
) -> None:
    adapter = shared.store.add(adapters.make(tiny_model, tmp_path / "adapter"), "peft", adopt=False)
    base = shared.store.add(tiny_model, "safetensors", adopt=False)
    merged = base.model_copy(update={"origin": {"base": base.digest, "adapter": adapter.digest}})
    data = shared.store.add(write_rows(tmp_path / "rows"), "jsonl")
    out = tmp_path / "out"
    out.mkdir()
    facts = Gguf().optimize(merged, data, GgufArgs(quantization="F16", adapter=True), out, shared)
    assert facts["adapter"] == adapter.digest
    chat = [{"role": "user", "content": "hello there"}]
    with serve(
        out, LlamaCppArgs(parallel=1, threads=1), MACHINE_CACHE, tmp_path / "log"
    ) as running:
        answer = Client(running.url).ask(chat, max_tokens=8).text.strip()
    assert answer == adapters.greedy(tiny_model, chat, adapter.path).strip()
    assert answer != adapters.greedy(tiny_model, chat).strip()


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes_elsewhere(
    variants: dict[str, Variant], tiny_model: Path, tmp_path: Path, workspace: Workspace
) -> None:
    again = made("gguf", [{"quantization": "Q4_0"}], tiny_model, workspace, tmp_path)[0]
    assert again.artifact.digest == variants["gguf-Q4_0"].artifact.digest


@pytest.mark.slow
@native_tools
def test_k_quants_and_importance_matrices_come_from_llama_cpps_own_tools(
    tmp_path: Path, workspace: Workspace
) -> None:
    model = wide_model(tmp_path / "wide")
    weighted_too: dict[str, Any] = {"quantization": "Q4_K_M", "imatrix": True}
    wanted = [{"quantization": "Q4_K_M"}, weighted_too, {"quantization": "Q6_K"}]
    plain, weighted, six = made("gguf", wanted, model, workspace, tmp_path)
    assert types_in(plain)["blk.0.ffn_up.weight"] == "Q4_K"
    assert types_in(six)["blk.0.ffn_up.weight"] == "Q6_K"
    assert weighted.facts["imatrix_rows"] == "40"
    assert weighted.artifact.digest != plain.artifact.digest
    content = (weighted.artifact.path / "model.gguf").read_bytes()
    assert os.fsencode(tmp_path) not in content


def wide_model(to: Path) -> Path:
    """A random Llama of K-quants' width with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tests.models import tiny_model

    tokenizer = AutoTokenizer.from_pretrained(tiny_model(MACHINE_CACHE))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def test_an_importance_matrix_is_made_by_every_core_and_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module: str = "weighbridge.tasks.optimizers.gguf_conversion"
    asked: dict[str, Any] = {}
    model = Artifact(digest="sha256:x", format="safetensors", size=1).located_by(lambda _: tmp_path)

    def run(command: list[str], doing: str, **options: Any) -> None:
        words = list(map(str, command))
        asked.update(dict(itertools.pairwise(words)), progress=options["part_done"])

    monkeypatch.setattr(f"{module}.cores", lambda: 7)
    monkeypatch.setattr(f"{module}._tool", lambda *_: Path("llama-imatrix"))
    monkeypatch.setattr(f"{module}.PROGRAM", SimpleNamespace(run=run))
    monkeypatch.setattr(f"{module}.read_rows", lambda *_: ["row"] * 9)
    monkeypatch.setattr(f"{module}.proof.text_of", lambda *_: "text")
    monkeypatch.setattr(
        f"{module}.load_tokenizer", lambda _: lambda *_, **__: {"input_ids": range(100 * 512)}
    )
    assert gguf_conversion._calibrate(model, model, 8, tmp_path, tmp_path) == 8
    assert (asked["-t"], asked["--output-frequency"]) == ("7", "2")
    assert asked["progress"]("stored collected data after 50 chunks in x") == 0.5
