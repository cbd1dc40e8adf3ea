"""Adapter and merged weights as clean folders. Imports torch: import it late."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from weighbridge.core.errors import BadInput
from weighbridge.tasks import hf_models
from weighbridge.tasks.answer_end import write_stops
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.finite_weights import not_finite

# What a folder in the Hugging Face layout holds beside its weights: configuration, tokenizer, chat
# template. Licences such as Llama's have to go with derived weights.
BESIDE_WEIGHTS: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
LOWER_RATE: Final = "lower finetune.learning_rate"
LEGAL: Final = ("LICENSE", "LICENCE", "NOTICE")


def write_adapter(trained: Path, out: Path, base: str) -> None:
    """Write the adapter without what a trainer leaves beside it.

    These are two files, with the same bytes wherever it was trained.

    Raises:
        BadInput: the last step made a weight of it that is no number.
    """
    out.mkdir()
    if tensor := not_finite(trained / "adapter_model.safetensors"):
        wrong = f"tensor {tensor} of the trained adapter holds NaN or infinity"
        raise BadInput("keeping the adapter", wrong, LOWER_RATE)
    shutil.copyfile(trained / "adapter_model.safetensors", out / "adapter_model.safetensors")
    config = json.loads((trained / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    if isinstance(config["target_modules"], list):
        # PEFT keeps a set, whose order changes from process to process.
        config["target_modules"].sort()
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_merged(base: Path, adapter: Path, out: Path) -> None:
    """Write the base's folder with merged weights; its other files stay as they are, byte for byte.

    Only `generation_config.json` is written anew, where it does not name what ends an answer.

    Each layer is merged in float32 and put back into the base's own number type.

    Raises:
        BadInput: the adapter makes a weight that is no number.
    """
    model = PeftModel.from_pretrained(
        hf_models.load_model(base, dtype="auto", to="cpu"), str(adapter)
    )
    for module in model.modules():
        if isinstance(module, LoraLayer):
            _merge(module)
    # `unload`, not `merge_and_unload`: that would merge a second time, in the base's number type.
    model.base_model.unload().save_pretrained(out)
    for file in base.iterdir():
        if file.is_file() and _belongs(file.name):
            shutil.copyfile(file, out / file.name)
    write_stops(out, load_tokenizer(out))


def _merge(layer: LoraLayer) -> None:
    inner = layer.get_base_layer()
    dtype: torch.dtype = inner.weight.dtype
    inner.to(torch.float32)
    try:
        # Only a safe merge looks for NaN; PEFT then raises a ValueError and changes no weight.
        layer.merge(safe_merge=True)
    except ValueError as exc:
        raise BadInput("merging the adapter", str(exc), LOWER_RATE) from exc
    inner.to(dtype)
    if not torch.isfinite(inner.weight).all():
        wrong = f"a merged weight is larger than {str(dtype).removeprefix('torch.')} can be"
        raise BadInput("merging the adapter", wrong, f"{LOWER_RATE}, or give a base in bfloat16")


def _belongs(name: str) -> bool:
    return (
        # The base's index names the base's shards; save_pretrained has written a new one.
        name.endswith(BESIDE_WEIGHTS) and not name.endswith(".safetensors.index.json")
    ) or name.startswith(LEGAL)
