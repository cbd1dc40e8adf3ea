"""Artifacts that several engines' tests share."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MACHINE_CACHE
from tests.tasks.optimizers.rows import write_rows
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.optimizers.onnx import Onnx, OnnxArgs

pytest.register_assert_rewrite("tests.serving.engines.shimmed")


@pytest.fixture(scope="session")
def onnx_tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model as an ONNX graph, without loss."""
    workspace = Workspace(
        Settings(home=tmp_path_factory.mktemp("onnx") / "home", cache=MACHINE_CACHE)
    )
    optimizer, out = Onnx(), tmp_path_factory.mktemp("built")
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    data = workspace.store.add(write_rows(tmp_path_factory.mktemp("data") / "rows", 4), "jsonl")
    optimizer.optimize(model, data, OnnxArgs(precision="fp32"), out, workspace)
    return out


@pytest.fixture(scope="module")
def transformer(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model and its tokenizer as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(
        tiny_model
    )
