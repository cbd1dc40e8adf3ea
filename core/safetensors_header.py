"""What a safetensors file says about itself: names, types, shapes and places of its tensors.

The file begins with the length of its header, in eight bytes; then come the header, in JSON, and
the bytes of the tensors. Nothing but the standard library is imported: environments of engines read
here too.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from weighbridge.core import strict_json
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line

LONGEST_HEADER: Final = 8 << 20
"""Bytes, which take two seconds and 250 MB of memory at worst. The format allows 100 MB; a tensor
takes about 120 bytes, so that seventy thousand find room in this.
"""
MOST_DIMENSIONS: Final = 64
"""As many as numpy and PyTorch allow."""
WIDTHS: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits per element. A type that is not here has no size we could check."""


def read_header(path: Path) -> dict[str, Any]:
    """Return the entries of all tensors of a file, by name: `dtype`, `shape` and `data_offsets`.

    Offsets count from `data_start`; all numbers are whole and none is negative.

    Raises:
        ValueError: it has no proper header.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        # Checked before it is read: the length in a damaged file may be anything.
        if size < 8 or length > size - 8:
            raise ValueError(f"a header of {length:,} bytes does not fit into {size:,}")
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes is longer than that of any model")
        header = strict_json.parse(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    # Free text, and no tensor.
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if not _is_tensor(tensor):
            raise ValueError(f"tensor {name[:80]} has no proper dtype, shape and data_offsets")
    return header


def _is_tensor(entry: Any) -> bool:
    """Whether an entry is of the form that the format prescribes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    return _are_sizes(shape, range(MOST_DIMENSIONS + 1)) and _are_sizes(offsets, range(2, 3))


def _are_sizes(value: Any, count: range) -> bool:
    # 2^63: no file and no dimension is larger, and products of such numbers stay small.
    return (
        isinstance(value, list)
        and len(value) in count
        and all(type(number) is int and 0 <= number < 1 << 63 for number in value)
    )


def data_start(path: Path) -> int:
    """Return the byte at which the tensors of a file begin."""
    with path.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def tensors(model: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield name, number type and shape of every tensor of the model in a folder.

    Raises:
        BadInput: a file has no proper header.
    """
    for path in sorted(model.glob("*.safetensors")):
        try:
            header = read_header(path)
        except ValueError as exc:
            raise BadInput(f"reading {path.name}", str(exc), "fetch or write it again") from exc
        for name, tensor in header.items():
            yield name, tensor["dtype"], tensor["shape"]


def problem(path: Path) -> str | None:
    """Return why no library would load a file; None if nothing speaks against it."""
    try:
        spans = sorted(_spans(read_header(path)))
    except ValueError as exc:
        return f"its header cannot be read ({one_line(exc)})"
    end = 0
    for begin, stop, name, length in spans:
        # The format allows no hole and no overlap.
        if begin != end:
            return f"tensor {name} starts at byte {begin} where {end} is expected"
        if stop < begin:
            return f"tensor {name} ends at byte {stop}, before it starts"
        if length >= 0 and stop - begin != length:
            return f"tensor {name} takes {stop - begin} bytes where its shape needs {length}"
        end = stop
    data = path.stat().st_size - data_start(path)
    return f"its tensors take {end:,} bytes and it holds {data:,}" if end != data else None


def _spans(header: Mapping[str, Any]) -> Iterator[tuple[int, int, str, int]]:
    """Yield begin, end, name and expected length of each tensor; -1 where its type is unknown."""
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        width = WIDTHS.get(tensor["dtype"])
        length = -1 if width is None else math.prod(tensor["shape"]) * width // 8
        yield begin, end, name, length
