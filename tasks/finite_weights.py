"""Weights that are no numbers: found by streaming through a file of safetensors, in bounded memory.

One of them is enough for a model to answer with nothing but the same token. Of a number of whatever
type the bits tell it: all bits of the exponent are set, in infinity and in NaN.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from weighbridge.core.safetensors_header import data_start, read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIECE: Final = 4 << 20
"""Bytes that are looked at together; a multiple of every number's width."""
_EXPONENTS: Final[Mapping[str, tuple[str, int]]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "C64": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    # These two have no infinity, and one NaN: all bits set, of the first but for its sign.
    "F8_E4M3": ("u1", 0x7F),
    "F8_E8M0": ("u1", 0xFF),
}
"""By number type: how its bits are read, and those that are all set in what is no number."""
_CONSTANTS: Final = "masked_bias"
"""What masks add, kept among the weights of GPT-J and its like: -1e9, which is -inf in float16."""


def not_finite(path: Path) -> str | None:
    """Return the name of a tensor in the file that holds NaN or infinity; None where none does.

    Raises:
        ValueError: it has no proper header.
    """
    import numpy as np

    header, start = read_header(path), data_start(path)
    piece = np.empty(PIECE, dtype=np.uint8)
    with path.open("rb", buffering=0) as stream:
        for name, tensor in sorted(header.items(), key=lambda entry: entry[1]["data_offsets"]):
            if tensor["dtype"] not in _EXPONENTS or name.endswith(_CONSTANTS):
                continue
            begin, end = tensor["data_offsets"]
            stream.seek(start + begin)
            if not _is_finite(stream, end - begin, piece, *_EXPONENTS[tensor["dtype"]]):
                return name
    return None


def _is_finite(
    stream: IO[bytes], size: int, piece: "NDArray[np.uint8]", bits: str, exponent: int
) -> bool:
    """Whether the next `size` bytes are numbers, all of them."""
    import numpy as np

    while size > 0:
        part = piece[: min(size, len(piece))]
        _fill(stream, part)
        numbers = part.view(bits)
        np.bitwise_and(numbers, numbers.dtype.type(exponent), out=numbers)
        if int(numbers.max()) == exponent:
            return False
        size -= len(part)
    return True


def _fill(stream: IO[bytes], part: "NDArray[np.uint8]") -> None:
    """Read until the array is full: one call may bring less."""
    view, filled = part.data, 0
    while filled < len(part):
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends before its tensors do")
        filled += count
