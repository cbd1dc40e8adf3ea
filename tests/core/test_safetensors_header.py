"""Headers of safetensors files that anybody may have written."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from weighbridge.core.safetensors_header import problem, read_header


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> Any:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(to: Path, header: object, data: int = 8) -> Path:
    """A file with this header, an object or bytes as they are to be written, and with data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    to.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return to


def test_a_sound_file_has_no_problem(tmp_path: Path) -> None:
    path = written(tmp_path / "m", {"a": entry(0, 4), "b": entry(4, 8), "__metadata__": {"x": "y"}})
    assert problem(path) is None
    assert list(read_header(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(0, 8), "b": entry(4, 8)}, "starts at byte 4 where 8 is expected"),
        ({"a": entry(0, 4)}, "its tensors take 4 bytes and it holds 8"),
        ({"a": entry(0, 16)}, "its tensors take 16 bytes and it holds 8"),
        ({"a": entry(4, 8)}, "starts at byte 4 where 0 is expected"),
        ({"a": entry(0, 8, [3])}, "takes 8 bytes where its shape needs 12"),
        ({"a": entry(0, 8, [2], "F64")}, "takes 8 bytes where its shape needs 16"),
        ({"a": entry(0, 8, [2**62, 2**62])}, "takes 8 bytes where its shape needs"),
        ({"a": entry(0, 8), "b": entry(8, 0, [1], "NEW")}, "ends at byte 0, before it starts"),
        ({"a": entry(-8, 0)}, "no proper dtype, shape and data_offsets"),
        ({"a": entry(0, 8, [2.0])}, "no proper dtype, shape and data_offsets"),
        ({"a": entry(0, 8, [True, 2])}, "no proper dtype, shape and data_offsets"),
        ({"a": entry(0, 8, ["2"])}, "no proper dtype, shape and data_offsets"),
        ({"a": entry(0, 8, [1] * 65)}, "no proper dtype, shape and data_offsets"),
        ({"a": entry(0, 2**63, [1])}, "no proper dtype, shape and data_offsets"),
        ({"a": entry(0, 8) | {"data_offsets": [0, 4, 8]}}, "no proper dtype"),
        ({"a": [0, 8]}, "no proper dtype, shape and data_offsets"),
        (b'{"a":' + json.dumps(entry(0, 8)).encode() + b',"a":{}}', "'a' is there twice"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "it holds NaN"),
        (b"[" * 200_000, "it is nested too deep"),
        (b'{"a":' * 200_000, "it is nested too deep"),
        (b"PK\x03\x04 a pickle in a zip", "cannot be read"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused_in_one_line(
    tmp_path: Path, header: object, words: str
) -> None:
    found = problem(written(tmp_path / "m", header)) or ""
    assert words in found
    assert "\n" not in found


def test_a_header_larger_than_any_model_has_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_000))
        # A file with a hole: it takes no room.
        stream.truncate(200_000_000)
    assert "a header of 100,000,000 bytes is longer than that of any model" in str(problem(path))
