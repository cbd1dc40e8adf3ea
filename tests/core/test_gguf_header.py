"""Headers of GGUF files that anybody may have written."""

import struct
from pathlib import Path

import pytest

from weighbridge.core.gguf_header import CODES, read_header, read_metadata

U32, STRING, ARRAY, U64 = 4, 8, 9, 10
ALIGNMENT = "general.alignment"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def number(name: str, value: int) -> bytes:
    return text(name) + struct.pack("<II", U32, value)


def tensor(name: str, shape: list[int], offset: int = 0, type: str = "F32") -> bytes:
    head = text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return head + struct.pack("<IQ", CODES[type], offset)


def written(
    to: Path, *parts: bytes, tensors: int = 0, values: int = 0, data: int = 0, version: int = 3
) -> Path:
    head = struct.pack("<4sIQQ", b"GGUF", version, tensors, values) + b"".join(parts)
    to.write_bytes(head + bytes(-len(head) % 32) + bytes(data))
    return to


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    parts = (number(ALIGNMENT, 32), tensor("a", [4, 2]), tensor("b", [4], 32))
    header = read_header(written(tmp_path / "m", *parts, tensors=2, values=1, data=48))
    assert [(t.name, t.shape, t.size) for t in header.tensors] == [
        ("a", (4, 2), 32),
        ("b", (4,), 16),
    ]


ABSURD = 2**62


@pytest.mark.parametrize(
    ("parts", "counts", "words"),
    [
        ((), {"tensors": ABSURD}, "ends in the middle"),
        ((), {"values": ABSURD}, "ends in the middle"),
        ((struct.pack("<Q", ABSURD),), {"values": 1}, "ends in the middle"),
        ((text("a") + struct.pack("<IQ", STRING, ABSURD),), {"values": 1}, "ends in the middle"),
        (
            (text("a") + struct.pack("<IIQ", ARRAY, U64, ABSURD),),
            {"values": 1},
            "ends in the middle",
        ),
        (
            (text("a") + struct.pack("<IIQ", ARRAY, STRING, ABSURD),),
            {"values": 1},
            "ends in the middle",
        ),
        (
            (text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 100_000,),
            {"values": 1},
            "an array of kind 9",
        ),
        ((text("a") + struct.pack("<I", 77) + bytes(8),), {"values": 1}, "unknown kind 77"),
        ((number(ALIGNMENT, 0),), {"values": 1}, "cannot be aligned to 0 bytes"),
        ((number(ALIGNMENT, 24),), {"values": 1}, "cannot be aligned to 24 bytes"),
        ((number(ALIGNMENT, 2**31),), {"values": 1}, "cannot be aligned"),
        (
            (text(ALIGNMENT) + struct.pack("<I", STRING) + text("x"),),
            {"values": 1},
            "cannot be aligned to 'x' bytes",
        ),
        (
            (text("a") + struct.pack("<I", 2**32 - 1) + bytes(32),),
            {"tensors": 1},
            "has 4294967295 dimensions",
        ),
        ((tensor("a", [ABSURD, ABSURD]),), {"tensors": 1}, "is cut short"),
        ((tensor("a", [4], ABSURD),), {"tensors": 1}, "is cut short"),
        ((tensor("a", [4]), tensor("a", [4], 32)), {"tensors": 2, "data": 64}, "names a tensor"),
        ((tensor("a", [4]), tensor("b", [4])), {"tensors": 2, "data": 64}, "lies where another"),
        ((tensor("a", [31], type="Q8_0"),), {"tensors": 1, "data": 64}, "no blocks of Q8_0 fill"),
        ((), {"version": 1}, "no GGUF file of version 2 or 3"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(
    tmp_path: Path, parts: tuple[bytes, ...], counts: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_header(written(tmp_path / "m", *parts, **counts))


def test_a_text_longer_than_any_header_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with path.open("wb") as stream:
        stream.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1))
        stream.write(text("a") + struct.pack("<IQ", STRING, 2**33))
        # A file with a hole: it takes no room.
        stream.truncate(2**34)
    with pytest.raises(ValueError, match="or that is too long"):
        read_metadata(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(ValueError, match="no GGUF file"):
        read_header(tmp_path / "model.gguf")


def test_a_cut_off_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(
        b"GGUF" + (3).to_bytes(4, "little") + (5).to_bytes(8, "little") * 2
    )
    with pytest.raises(ValueError, match="ends in the middle"):
        read_header(tmp_path / "model.gguf")
