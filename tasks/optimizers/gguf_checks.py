"""What can be known about a conversion to GGUF before any time is spent on it."""

import ast
import difflib
from pathlib import Path

from weighbridge.core.disk import require_room
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.safetensors_header import tensors
from weighbridge.core.store import Store
from weighbridge.serving import llama_cpp_native
from weighbridge.tasks.model_files import read_object
from weighbridge.tasks.optimizers.gguf_quantizations import Quantization


def base_type(model: Path) -> str:
    """Return the narrowest GGUF type that holds the weights without loss."""
    # Of two types in one model, neither F16 nor BF16 holds all numbers of the other.
    kinds = {kind for _, kind, shape in tensors(model) if len(shape) > 1}
    return {frozenset({"BF16"}): "BF16", frozenset({"F16"}): "F16"}.get(frozenset(kinds), "F32")


def known_architectures(sources: Path) -> list[str]:
    """Return every architecture that llama.cpp's converter names, from its sources, without running
    them.
    """
    tree = ast.parse((sources / "conversion" / "__init__.py").read_text(encoding="utf-8"))
    for statement in tree.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and getattr(statement.target, "id", "") == "TEXT_MODEL_MAP"
        ):
            return sorted(ast.literal_eval(statement.value)) if statement.value else []
    raise AssertionError("llama.cpp's converter lists no architectures where it used to")


def check_architecture(model: Path, cache: Path, doing: str) -> None:
    """Raise BadInput for an architecture that the converter does not know, naming the nearest."""
    declared = read_object("config.json", model / "config.json").get("architectures") or []
    if not declared:
        raise BadInput(
            doing,
            "config.json names no `architectures`",
            "add the model's class, as transformers saves it",
        )
    architectures = known_architectures(llama_cpp_native.source(cache))
    if declared[0] not in architectures:
        near = difflib.get_close_matches(str(declared[0]), architectures, n=1)
        nearest = f"; the nearest it knows is {near[0]}" if near else ""
        wrong = (
            f"llama.cpp {llama_cpp_native.VERSION}'s converter does not know the architecture "
            f"{declared[0]}{nearest}"
        )
        raise BadInput(doing, wrong, "serve it with `kind: none` on vLLM instead")


def check_widths(model: Path, quantization: Quantization, doing: str) -> None:
    """Raise BadInput, listing tensors, where a matrix does not fit the quantization's blocks."""
    uneven = [
        f"{name} ({shape[-1]})"
        for name, _, shape in tensors(model)
        if len(shape) == 2 and name.endswith(".weight") and shape[-1] % quantization.block
    ]
    if uneven:
        shown = ", ".join(uneven[:3]) + (f" and {len(uneven) - 3} more" if len(uneven) > 3 else "")
        wrong = (
            f"it needs rows of a multiple of {quantization.block} weights, and these are not: "
            f"{shown}"
        )
        raise BadInput(
            doing,
            wrong,
            "choose Q8_0, Q5_0 or Q4_0, or set `allow_fallback: true` to let such tensors be "
            "larger",
        )


def check_tools(names: list[str], cache: Path, doing: str) -> None:
    """Raise Unavailable, with the command that helps, where a program of llama.cpp is missing."""
    missing = [name for name in names if llama_cpp_native.tool(name, cache) is None]
    if missing:
        wrong = (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} neither built "
            "nor on the PATH"
        )
        raise Unavailable(doing, wrong, f"run: {llama_cpp_native.INSTALL}")


def check_room(model: Path, quantization: Quantization, store: Store, doing: str) -> None:
    """Raise Unavailable where intermediate and result together do not fit onto the store's disk."""
    # The intermediate, as large as the weights, stays until the variant is written.
    weights_size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    widest = 32 if base_type(model) == "F32" else 16
    needed = int(weights_size * (1 + quantization.bits / widest))
    require_room(needed, "the lossless intermediate, with the result,", store.root, doing)
