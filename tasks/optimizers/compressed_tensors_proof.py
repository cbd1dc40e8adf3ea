"""Proof that a quantized model is what it claims, read from its tensors: every linear layer, its
type, its width.

Which layers there are is asked of transformers and of the model's own configuration, not of what
quantized it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line
from weighbridge.core.safetensors_header import WIDTHS, tensors
from weighbridge.tasks.model_files import read_object


@dataclass(frozen=True)
class QuantizedLinear:
    """One linear layer of a model."""

    name: str
    rows: int
    width: int
    """Weights that one row of its matrix has: what it takes in."""


@dataclass(frozen=True)
class Scheme:
    """How a linear layer's weights are stored; `group` is the number of weights under one scale, 0
    for a whole row.
    """

    bits: int
    kind: str
    """`int` or `float`."""
    group: int
    activations: bool
    """Whether what goes into a layer is quantized too."""

    def stored(self, layer: QuantizedLinear) -> dict[str, tuple[str, list[int]]]:
        """Return the tensors that must be there for a layer: suffix, number type, shape."""
        scales = math.ceil(layer.width / self.group) if self.group else 1
        if self.bits == 4:
            # Eight weights of 4 bits lie in one int32.
            weights = ("weight_packed", "I32", [layer.rows, math.ceil(layer.width / 8)])
        else:
            weights = (
                "weight",
                "I8" if self.kind == "int" else "F8_E4M3",
                [layer.rows, layer.width],
            )
        # No type for the scales: they have the model's own.
        return {weights[0]: weights[1:], "weight_scale": ("", [layer.rows, scales])}


def linear_layers(model: Path, ignore: Sequence[str], doing: str) -> list[QuantizedLinear]:
    """Return every linear layer of a model that is not ignored; its weights are not read.

    Raises:
        BadInput: its configuration is of no model that transformers knows, or weights of other
            kinds would be left out.
    """
    import torch

    layers, embeddings = [], set()
    for name, module in _skeleton(model, doing).named_modules():
        if isinstance(module, torch.nn.Linear):
            layers.append(QuantizedLinear(name, module.out_features, module.in_features))
        elif isinstance(module, torch.nn.Embedding):
            embeddings.add(name)
    _require_all_known({layer.name for layer in layers} | embeddings, model, ignore, doing)
    return [layer for layer in layers if not ignored(layer.name, ignore)]


def ignored(name: str, patterns: Sequence[str]) -> bool:
    """Whether llm-compressor leaves a layer alone: by its name, or by an expression after `re:`."""
    return any(
        # match and not fullmatch, as in compressed_tensors.utils.match.
        re.match(pattern.removeprefix("re:"), name)
        if pattern.startswith("re:")
        else pattern == name
        for pattern in patterns
    )


def _skeleton(model: Path, doing: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=True)
        # Shapes without memory: the model may be larger than this machine's.
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as exc:
        wrong = one_line(exc, 300)
        raise BadInput(
            doing, wrong, "give a causal language model that transformers knows"
        ) from exc


def _require_all_known(modules: set[str], model: Path, ignore: Sequence[str], doing: str) -> None:
    others = [
        name
        for name, _, shape in tensors(model)
        if len(shape) > 1
        and name.rpartition(".")[0] not in modules
        and not ignored(name.rpartition(".")[0], ignore)
    ]
    if others:
        wrong = f"{_few(others)} belong to no linear layer and would stay as they are"
        raise BadInput(doing, wrong, "name them in `ignore`, or leave this variant out")


def check_widths(layers: Sequence[QuantizedLinear], scheme: Scheme, doing: str) -> None:
    """Raise BadInput, naming the layers, where a width cannot be cut into the scheme's groups."""
    # A group needs its own scale, and 4-bit weights are packed by eight.
    step = math.lcm(scheme.group or 1, 8 if scheme.bits == 4 else 1)
    uneven = [f"{layer.name} ({layer.width})" for layer in layers if layer.width % step]
    if uneven:
        wrong = (
            f"it needs layers whose width is a multiple of {step}, and these are not: "
            f"{_few(uneven)}"
        )
        raise BadInput(
            doing, wrong, "choose a smaller `group_size`, choose W8A8, or name them in `ignore`"
        )


def check_unquantized(model: Path, doing: str) -> None:
    """Raise BadInput for a model whose weights are quantized already."""
    quantization = read_object("config.json", model / "config.json").get("quantization_config")
    if quantization:
        method = (
            quantization.get("quant_method", "somehow")
            if isinstance(quantization, dict)
            else "somehow"
        )
        raise BadInput(
            doing,
            f"the model is quantized already ({method})",
            "start from the unquantized weights",
        )


def measure(
    quantized: Path, layers: Sequence[QuantizedLinear], scheme: Scheme, doing: str
) -> dict[str, str]:
    """Return bits per weight of the quantized layers, read from the stored tensors.

    Raises:
        BadInput: a layer is not quantized, or otherwise than asked; it names the layers.
    """
    _require_told(quantized, scheme, doing)
    stored = {
        name: (kind, shape, _bits(kind) * math.prod(shape))
        for name, kind, shape in tensors(quantized)
    }
    wrong = [problem for layer in layers for problem in _problems(layer, scheme, stored)]
    if wrong:
        raise BadInput(
            doing, f"it was not done as asked: {_few(wrong)}", "report it to llm-compressor"
        )
    names = {layer.name for layer in layers}
    bits = sum(size for name, (_, _, size) in stored.items() if name.rpartition(".")[0] in names)
    weights = sum(layer.rows * layer.width for layer in layers)
    return {"bits_per_weight": f"{bits / weights:.3f}", "quantized_layers": str(len(layers))}


def _problems(
    layer: QuantizedLinear, scheme: Scheme, stored: dict[str, tuple[str, list[int], int]]
) -> Iterator[str]:
    for suffix, (kind, shape) in scheme.stored(layer).items():
        tensor = stored.get(f"{layer.name}.{suffix}")
        if tensor is None:
            yield f"{layer.name} has no {suffix}"
        elif (kind and tensor[0] != kind) or tensor[1] != shape:
            yield (
                f"{layer.name}.{suffix} is {tensor[0]} {tensor[1]} "
                f"and not {kind or tensor[0]} {shape}"
            )


def _require_told(quantized: Path, scheme: Scheme, doing: str) -> None:
    """Raise BadInput where config.json says otherwise than was asked: engines go by it."""
    quantization = (
        read_object("config.json", quantized / "config.json").get("quantization_config") or {}
    )
    groups = list((quantization.get("config_groups") or {}).values())
    weights = groups[0].get("weights") or {} if len(groups) == 1 else {}
    expected = {"num_bits": scheme.bits, "type": scheme.kind, "group_size": scheme.group or None}
    stated = {name: weights.get(name) for name in expected}
    activations = bool(groups and groups[0].get("input_activations"))
    if quantization.get("quant_method") != "compressed-tensors" or (stated, activations) != (
        expected,
        scheme.activations,
    ):
        raise BadInput(
            doing,
            f"its config.json says {stated or quantization}, and not {expected}",
            "report it to llm-compressor",
        )


def _bits(kind: str) -> int:
    return WIDTHS[kind]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
