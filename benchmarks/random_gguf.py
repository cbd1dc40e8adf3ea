"""A Llama in one GGUF file with random weights, of any size, written without any model library.

Speed does not depend on what the weights are, so this stands in for a model of that size.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

F32: Final = 0
Q8_0: Final = 8
_BLOCK: Final = 32
_ALIGNMENT: Final = 32
_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Size of a Llama."""

    hidden: int = 64
    layers: int = 2
    feed_forward: int = 128
    heads: int = 4
    vocabulary: int = 512
    context: int = 2048

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(dims)) for _, dims, _ in _tensors(self))


SMALL: Final = Shape()
B_28M: Final = Shape(
    hidden=512, layers=8, feed_forward=1408, heads=8, vocabulary=4096, context=4096
)
B_300M: Final = Shape(
    hidden=1024, layers=22, feed_forward=2816, heads=16, vocabulary=16384, context=2048
)


def write(path: Path, shape: Shape = SMALL, seed: int = 0) -> Path:
    """Write the model to `path`: matrices as Q8_0, norms as F32."""
    tensors = list(_tensors(shape))
    metadata = _metadata(shape)
    with path.open("wb") as stream:
        stream.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            stream.write(_text(key) + _typed(value))
        offset = 0
        for name, dims, kind in tensors:
            stream.write(
                _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
            )
            offset += _padded(_bytes_of(dims, kind))
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        generator = np.random.default_rng(seed)
        for _, dims, kind in tensors:
            data = _random(generator, dims, kind, shape.hidden)
            stream.write(data + b"\0" * (-len(data) % _ALIGNMENT))
    return path


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], int]]:
    hidden, wide = shape.hidden, shape.feed_forward
    yield "token_embd.weight", (hidden, shape.vocabulary), Q8_0
    yield "output_norm.weight", (hidden,), F32
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield f"{block}.attn_norm.weight", (hidden,), F32
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{block}.{name}.weight", (hidden, hidden), Q8_0
        yield f"{block}.ffn_norm.weight", (hidden,), F32
        yield f"{block}.ffn_gate.weight", (hidden, wide), Q8_0
        yield f"{block}.ffn_up.weight", (hidden, wide), Q8_0
        yield f"{block}.ffn_down.weight", (wide, hidden), Q8_0


def _metadata(shape: Shape) -> dict[str, Any]:
    tokens = [*_byte_tokens(), "<|im_start|>", "<|im_end|>"]
    tokens += [f"word{index}" for index in range(shape.vocabulary - len(tokens))]
    return {
        "general.architecture": "llama",
        "general.name": "random",
        "general.file_type": 7,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.hidden // shape.heads,
        "llama.vocab_size": shape.vocabulary,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            # 3 marks control tokens, 1 normal ones.
            3 if 256 <= index < 258 else 1
            for index in range(len(tokens))
        ],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": _TEMPLATE,
    }


def _byte_tokens() -> list[str]:
    """Return the 256 bytes as byte-level BPE writes them: printable ones stay, others move up."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """Return a value after its type, as GGUF numbers types."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    first = value[0]
    if isinstance(first, str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(item) for item in value)
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def _bytes_of(dims: tuple[int, ...], kind: int) -> int:
    count = int(np.prod(dims))
    return count * 4 if kind == F32 else count // _BLOCK * (2 + _BLOCK)


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT


def _random(generator: np.random.Generator, dims: tuple[int, ...], kind: int, hidden: int) -> bytes:
    if kind == F32:
        return np.ones(dims, np.float32).tobytes()
    blocks = np.empty(
        int(np.prod(dims)) // _BLOCK, np.dtype([("scale", "<f2"), ("values", "i1", _BLOCK)])
    )
    # Values are uniform in ±127: with this scale the products keep their size from layer to layer.
    blocks["scale"] = 1 / (73 * hidden**0.5)
    blocks["values"] = generator.integers(-127, 128, (len(blocks), _BLOCK), np.int8)
    return blocks.tobytes()
