"""What vLLM needs of this machine's devices: enough GPUs, and ones that can run FP8 weights."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from weighbridge.core.errors import Unavailable
from weighbridge.serving.engines.devices import compute_capability, nvidia_devices

FP8_SINCE: Final = (7, 5)
"""Compute capability from which vLLM takes FP8 weights: it calculates in FP8 from 8.9, and in 16
bits below.
"""


def require_gpus(wanted: int, doing: str) -> None:
    """Raise Unavailable where there are fewer NVIDIA GPUs than wanted."""
    present = nvidia_devices()
    if not present:
        remedy = "run it where there is one, or set `device: cpu`"
        raise Unavailable(doing, "there is no NVIDIA device here", remedy)
    if wanted > present:
        wrong = f"it is to be spread over {wanted} GPUs and there are {present}"
        raise Unavailable(doing, wrong, "lower tensor_parallel_size or pipeline_parallel_size")


def why_no_fp8(device: str) -> str | None:
    """Return what keeps vLLM from running FP8 weights on this machine's device; None if nothing
    does.
    """
    capability = compute_capability() if device == "cuda" else None
    if capability is None or capability >= FP8_SINCE:
        return None
    actual, needed = (".".join(map(str, pair)) for pair in (capability, FP8_SINCE))
    return f"FP8 needs a GPU of compute capability {needed}, and this one has {actual}"


def holds_fp8(model: Path) -> bool:
    """Whether any of a model's weights are stored as FP8, as its configuration says."""
    return any(_is_fp8(weights) for weights in _quantized_groups(model))


def _is_fp8(weights: Mapping[str, Any]) -> bool:
    number = (weights.get("type"), weights.get("num_bits"))
    return weights.get("quant_method") == "fp8" or number == ("float", 8)


def _quantized_groups(model: Path) -> Iterator[Mapping[str, Any]]:
    """Yield how each group of the weights is stored."""
    try:
        config = json.loads((model / "config.json").read_text())
    except (OSError, ValueError):
        return  # the engine itself has more to say about it
    quantization = config.get("quantization_config") or {}
    yield quantization
    for group in (quantization.get("config_groups") or {}).values():
        yield group.get("weights") or {}
