"""Run onnxruntime-genai's own model builder, then tell what is in the graph that came out.

Runs in the onnx environment, not in ours: `python -P build.py MODEL OUT PRECISION PROVIDER CACHE
REPORT [KEY=VALUE …]`.
"""

import json
import math
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TABLES = ("cos_cache", "sin_cache")
"""Not weights: sines that the builder computes beforehand."""
PLAIN = ("MatMul", "Gemm")


def describe(graph: Any) -> dict[str, Any]:
    """Return what the weights of a graph are, for the optimizer to compare with what was asked."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(TABLES)}
    bits: dict[str, int] = {}
    packed: dict[str, int] = {}
    """Weights that lie several to a byte, by the name of their tensor."""
    for node in graph.node:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits":
            bits[node.input[1]] = attributes["bits"]
            # Scales and zero points take bytes, and are no weights.
            packed |= {
                node.input[1]: attributes["K"] * attributes["N"],
                **dict.fromkeys(node.input[2:], 0),
            }
    plain = sorted(
        {
            name
            for node in graph.node
            if node.op_type in PLAIN
            for name in node.input
            if name in weights
        }
    )
    count = sum(packed.get(name, math.prod(tensor.dims)) for name, tensor in weights.items())
    size = sum(_bytes(tensor) for tensor in weights.values())
    return {
        "weights": count,
        "bits_per_weight": 8 * size / count,
        "quantized": dict(Counter(str(value) for value in bits.values())),
        "plain": plain,
        "types": dict(
            Counter(_type(tensor) for name, tensor in weights.items() if len(tensor.dims) > 1)
        ),
        "operators": dict(Counter(node.op_type for node in graph.node)),
        "inputs": [value.name for value in graph.input],
    }


def _type(tensor: Any) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(tensor.data_type))


def _bytes(tensor: Any) -> int:
    import onnx

    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * width)


def main(
    model: str, out: str, precision: str, provider: str, cache: str, report: str, *options: str
) -> None:
    arguments = ["-i", model, "-o", out, "-p", precision, "-e", provider, "-c", cache]
    # The builder would send the user's token to the hub; the model lies here.
    sys.argv = ["builder", *arguments, "--extra_options", "hf_token=false", *options]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    import onnx

    graph = onnx.load(str(Path(out, "model.onnx")), load_external_data=False).graph
    Path(report).write_text(json.dumps(describe(graph)))


if __name__ == "__main__":
    main(*sys.argv[1:])
