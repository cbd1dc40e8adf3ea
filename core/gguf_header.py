"""What a GGUF file says about itself: metadata and list of tensors.

Nothing but the standard library is imported: optimizers' environments read here too.
"""

import hashlib
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"GGUF"
LONGEST_HEADER = 64 << 20
"""Bytes; the vocabularies that we know take up to 20 MB."""
CUT_SHORT = "a GGUF file ends in the middle of its header, or that is too long"
MOST_DIMENSIONS = 4
"""ggml's own limit."""
# The format's numbers for kinds of values, and how `struct` calls them.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# ggml's numbers, weights per block and bytes per block. Numbers 4 and 5 stood for formats that ggml
# has dropped.
_BLOCKS = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I32": (26, 1, 4),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
}
TYPES = {code: (name, block, size) for name, (code, block, size) in _BLOCKS.items()}
"""ggml's tensor types that we meet: name, weights per block, bytes per block."""
CODES = {name: code for name, (code, _, _) in _BLOCKS.items()}


@dataclass(frozen=True)
class Value:
    """One entry of the metadata, by where it lies; its bytes are type and content."""

    start: int
    raw: bytes

    @property
    def content(self) -> int | float | bool | str | None:
        """Return the value; None for an array, which nobody needs."""
        kind = struct.unpack_from("<I", self.raw)[0]
        if kind == _STRING:
            # Before the text: its kind in four bytes and its length in eight.
            return self.raw[12:].decode("utf-8", "replace")
        if kind == _ARRAY:
            return None
        value: int | float | bool = struct.unpack_from("<" + _SCALARS[kind], self.raw, 4)[0]
        return value


@dataclass(frozen=True)
class Tensor:
    """A tensor's place in the file; `shape` with the row width first, as ggml counts."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    """Bytes from the start of the file."""

    @property
    def weights(self) -> int:
        product = 1
        for n in self.shape:
            product *= n
        return product

    @property
    def size(self) -> int:
        """Return its bytes in the file."""
        _, block, size = TYPES[CODES[self.type]]
        return self.weights // block * size


@dataclass(frozen=True)
class Header:
    """Everything before the weights."""

    values: dict[str, Value]
    tensors: list[Tensor]
    tensors_start: int
    """Where the list of tensors begins: all metadata lies before it."""
    alignment: int

    @property
    def bits_per_weight(self) -> float:
        return (
            8
            * sum(tensor.size for tensor in self.tensors)
            / sum(tensor.weights for tensor in self.tensors)
        )

    def tokenizer_digest(self) -> str:
        """Return a digest of all metadata that decides how texts become tokens."""
        entries = sorted(
            (name, value.raw)
            for name, value in self.values.items()
            if name.startswith("tokenizer.")
        )
        return hashlib.sha256(b"".join(name.encode() + raw for name, raw in entries)).hexdigest()

    def summary(self) -> str:
        """Return how many tensors have which type: `7 F32, 14 Q4_0, 1 Q8_0`."""
        return ", ".join(
            f"{n} {kind}"
            for kind, n in sorted(Counter(tensor.type for tensor in self.tensors).items())
        )


def aligned(size: int, alignment: int) -> int:
    """Return `size`, rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def read_metadata(path: Path) -> dict[str, Value]:
    """Return the metadata of a little-endian GGUF file, whatever types its tensors have.

    Raises:
        ValueError: it is none, or cut short, or what it says of itself cannot be.
    """
    with path.open("rb") as stream:
        reader = _Reader(stream, path.stat().st_size)
        _, value_count = _counts(reader, path)
        return _values(reader, value_count)


def read_header(path: Path) -> Header:
    """Return the header of a little-endian GGUF file.

    Raises:
        ValueError: it is none, or cut short, or what it says of itself cannot be, or it holds
            tensors of a type that is not in `TYPES`.
    """
    with path.open("rb") as stream:
        reader = _Reader(stream, path.stat().st_size)
        tensor_count, value_count = _counts(reader, path)
        values = _values(reader, value_count)
        start = stream.tell()
        entries = [_tensor(reader) for _ in range(tensor_count)]
        alignment = _alignment(values)
        data = aligned(stream.tell(), alignment)
    tensors = [Tensor(name, shape, kind, data + offset) for name, shape, kind, offset in entries]
    _check_places(tensors, path)
    return Header(values, tensors, start, alignment)


@dataclass(frozen=True)
class _Reader:
    """A header that is read from its beginning, and never beyond the end of its file."""

    stream: BinaryIO
    size: int

    def require(self, count: int) -> None:
        """Refuse a length before anything of that length is read or looped over.

        Raises:
            ValueError: so many bytes do not follow.
        """
        if self.stream.tell() + count > min(self.size, LONGEST_HEADER):
            raise ValueError(CUT_SHORT)

    def take(self, size: int) -> bytes:
        self.require(size)
        return self.stream.read(size)

    def skip(self, size: int) -> None:
        self.require(size)
        self.stream.seek(size, 1)

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        return self.take(self.unpack("<Q")[0]).decode("utf-8", "replace")


def _counts(reader: _Reader, path: Path) -> tuple[int, int]:
    """Return how many tensors and how many entries of metadata follow."""
    magic, version, tensor_count, value_count = reader.unpack("<4sIQQ")
    # Version 1 counted in 32 bits, and would be read as something else.
    if magic != MAGIC or version not in (2, 3):
        raise ValueError(f"{path} is no GGUF file of version 2 or 3")
    # The shortest entry of metadata: an empty name, a type, one byte. The shortest tensor: an empty
    # name, no dimensions, type and offset.
    reader.require(value_count * 13 + tensor_count * 24)
    return tensor_count, value_count


def _alignment(values: dict[str, Value]) -> int:
    # 32 bytes is what the format says where a file says nothing.
    stated = values["general.alignment"].content if "general.alignment" in values else 32
    # Powers of two, as in llama.cpp; none is larger than a page of 2 MiB.
    if type(stated) is not int or stated not in (1 << n for n in range(22)):
        raise ValueError(f"a GGUF file cannot be aligned to {stated!r} bytes")
    return stated


def _check_places(tensors: list[Tensor], path: Path) -> None:
    """Refuse tensors that lie outside the file, or where another one lies."""
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise ValueError(f"{path} names a tensor twice")
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.shape and tensor.shape[0] % TYPES[CODES[tensor.type]][1]:
            raise ValueError(f"tensor {tensor.name} has rows that no blocks of {tensor.type} fill")
        if tensor.offset < end:
            raise ValueError(f"tensor {tensor.name} lies where another one lies")
        end = tensor.offset + tensor.size
    if end > path.stat().st_size:
        raise ValueError(f"{path} is cut short")


def _values(reader: _Reader, count: int) -> dict[str, Value]:
    return dict(_value(reader) for _ in range(count))


def _value(reader: _Reader) -> tuple[str, Value]:
    name, start = reader.text(), reader.stream.tell()
    _skip(reader, reader.unpack("<I")[0])
    size = reader.stream.tell() - start
    reader.stream.seek(start)
    return name, Value(start, reader.take(size))


def _skip(reader: _Reader, kind: int) -> None:
    if kind in _SCALARS:
        reader.skip(struct.calcsize("<" + _SCALARS[kind]))
    elif kind == _STRING:
        reader.skip(reader.unpack("<Q")[0])
    elif kind == _ARRAY:
        inner, count = reader.unpack("<IQ")
        if inner in _SCALARS:
            reader.skip(count * struct.calcsize("<" + _SCALARS[inner]))
        elif inner == _STRING:
            _skip_texts(reader, count)
        else:
            raise ValueError(f"a GGUF file holds an array of kind {inner}")
    else:
        raise ValueError(f"a GGUF file holds a value of unknown kind {kind}")


def _skip_texts(reader: _Reader, count: int) -> None:
    # Every text takes its length at least.
    reader.require(count * 8)
    # Not by `_skip`: vocabularies are long, and a call per token takes three times as long.
    read, seek = reader.stream.read, reader.stream.seek
    for _ in range(count):
        length = read(8)
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > LONGEST_HEADER:
            raise ValueError(CUT_SHORT)
        seek(size, 1)
    reader.require(0)


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], str, int]:
    name = reader.text()
    (dimensions,) = reader.unpack("<I")
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:80]} has {dimensions} dimensions")
    *shape, kind, offset = reader.unpack(f"<{dimensions}QIQ")
    if kind not in TYPES:
        raise ValueError(f"tensor {name[:80]} has the unknown type {kind}")
    return name, tuple(shape), TYPES[kind][0], offset
