"""Write another precision of a GGUF file, with the `gguf` package's numpy quantizers and no
compiler.

Runs in the gguf environment, not in ours: `python requantize.py SOURCES IN OUT TYPE FILE_TYPE
REPORT`.

What stays at which precision follows llama-quantize as far as numpy goes:

- vectors, norms, expert gates and other small tensors stay F32 (or as the converter left them);
- with a TYPE of 4 or 5 bits the output matrix (the token embedding where the two are tied) becomes
  Q8_0: llama-quantize takes Q6_K for it, which numpy cannot write, and Q8_0 where Q6_K does not
  fit;
- a matrix whose rows TYPE's blocks don't divide becomes F16;
- everything else becomes TYPE.

The metadata, the tokenizer in it included, is copied byte by byte; only the file type is changed.
Weights pass through one tensor at a time, so memory holds the largest of them, not the model.
"""

import struct
import sys
import types
from pathlib import Path
from typing import Any, BinaryIO

# The environment of gguf knows no package of ours: this is where it lies.
if "weighbridge" not in sys.modules:
    sys.modules["weighbridge"] = package = types.ModuleType("weighbridge")
    package.__path__ = [str(Path(__file__).resolve().parents[3])]

from weighbridge.core.gguf_header import CODES, TYPES, Header, Tensor, aligned, read_header

REFUSED = 65
"""Exit status after which REPORT holds the reason for a person."""
# As in llama.cpp's src/llama-quant.cpp, which never quantizes tensors of these names.
_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "position_embd.weight",
    "token_types.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "time_mix_",
)
_EVEN = ("F32", "F16", "BF16", "Q8_0")
"""Types that the output matrix shares with all others."""


class Refusal(Exception):
    """The weights cannot be written like this; the text is for a person."""


def plan(header: Header, quantization: str) -> list[str]:
    """Return the type in which each tensor is to be written."""
    names = {tensor.name for tensor in header.tensors}
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    wide = all(tensor.type == "F32" for tensor in header.tensors)
    return [_type_for(tensor, quantization, output, wide) for tensor in header.tensors]


def _type_for(tensor: Tensor, quantization: str, output: str, wide: bool) -> str:
    kept = (
        len(tensor.shape) < 2
        or not tensor.name.endswith(".weight")
        or any(word in tensor.name for word in _KEPT)
    )
    # In a file of 16 bits, what is wider was made so by the converter, which knows each
    # architecture.
    if kept or (tensor.type == "F32" and not wide):
        return str(tensor.type)
    if tensor.name == output and quantization not in _EVEN:
        quantization = "Q8_0"
    block = TYPES[CODES[quantization]][1]
    return quantization if tensor.shape[0] % block == 0 else "F16"


def converted(source: Path, tensor: Tensor, kind: str) -> Any:
    """Return the bytes of a tensor in another type, as a numpy array."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    raw = np.memmap(source, np.uint8, "r", tensor.offset, (tensor.size,))
    if kind == tensor.type:
        return raw
    row = tensor.size // (tensor.weights // tensor.shape[0])
    floats = quants.dequantize(raw.reshape(-1, row), GGMLQuantizationType[tensor.type])
    if not np.isfinite(floats).all():
        raise Refusal(f"tensor {tensor.name} holds NaN or infinite weights")
    # An overflow is refused below, with the tensor's name.
    with np.errstate(over="ignore"):
        result = quants.quantize(floats, GGMLQuantizationType[kind])
    if kind == "F16" and not np.isfinite(result).all():
        raise Refusal(f"tensor {tensor.name} holds weights too large for F16; choose BF16 or Q8_0")
    return result


def write_header(
    out: BinaryIO, source: Path, header: Header, file_type: int, kinds: list[str]
) -> list[int]:
    """Write the metadata as it was and the new list of tensors; return each one's size in bytes."""
    with source.open("rb") as stream:
        head = bytearray(stream.read(header.tensors_start))
    # + 4: a value begins with the number of its type.
    struct.pack_into("<I", head, header.values["general.file_type"].start + 4, file_type)
    out.write(head)
    offset, sizes = 0, []
    for tensor, kind in zip(header.tensors, kinds, strict=True):
        name, code = tensor.name.encode(), CODES[kind]
        sizes.append(tensor.weights // TYPES[code][1] * TYPES[code][2])
        out.write(struct.pack("<Q", len(name)) + name)
        out.write(
            struct.pack(f"<I{len(tensor.shape)}QIQ", len(tensor.shape), *tensor.shape, code, offset)
        )
        offset += aligned(sizes[-1], header.alignment)
    _pad(out, header.alignment)
    return sizes


def _pad(out: BinaryIO, alignment: int) -> None:
    out.write(b"\0" * (aligned(out.tell(), alignment) - out.tell()))


def main(sources: str, source: str, to: str, quantization: str, file_type: str, report: str) -> int:
    sys.path.insert(0, str(Path(sources, "gguf-py")))
    header = read_header(Path(source))
    kinds = plan(header, quantization)
    with Path(to).open("wb") as out:
        sizes = write_header(out, Path(source), header, int(file_type), kinds)
        for done, (tensor, kind, size) in enumerate(
            zip(header.tensors, kinds, sizes, strict=True), start=1
        ):
            try:
                data = converted(Path(source), tensor, kind)
            except Refusal as exc:
                Path(report).write_text(str(exc))
                return REFUSED
            if data.nbytes != size:
                raise AssertionError(
                    f"{tensor.name}: {data.nbytes} bytes of {kind} instead of {size}"
                )
            out.write(data.tobytes())
            _pad(out, header.alignment)
            print(f"[{done}/{len(kinds)}] {tensor.name} {tensor.type} -> {kind}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
