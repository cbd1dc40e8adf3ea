"""Weights that are no numbers are found, whatever their type and wherever they stand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weighbridge.tasks import finite_weights
from weighbridge.tasks.finite_weights import not_finite

TYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_weight_that_is_no_number_is_found(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    tensors = {name: torch.ones(3, 5) for name in "abc"}
    tensors["b"][2, 4] = value
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "m.safetensors")
    assert not_finite(tmp_path / "m.safetensors") == "b"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e8m0fnu], ids=str)
def test_types_without_infinity_have_one_nan(tmp_path: Path, dtype: torch.dtype) -> None:
    every = torch.arange(256).to(torch.uint8).view(dtype)
    for number, weight in enumerate(every.split(1)):
        save_file({"a": weight.clone()}, path := tmp_path / f"{number}.safetensors")
        assert (not_finite(path) == "a") == bool(weight.float().isnan().any())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_largest_and_the_smallest_numbers_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    ends = [0.0, -0.0, limits.tiny, limits.max, limits.min, 1.0]
    numbers = torch.tensor(ends, dtype=torch.float64)
    tensors = {"a": numbers.to(dtype), "empty": torch.ones(0, 4, dtype=dtype)}
    save_file(tensors, tmp_path / "m.safetensors")
    assert not_finite(tmp_path / "m.safetensors") is None


def test_whole_numbers_and_what_masks_add_are_no_weights(tmp_path: Path) -> None:
    tensors = {
        "attn.bias": torch.full((8,), 255, dtype=torch.uint8),
        "ids": torch.full((8,), -1),
        "h.0.attn.masked_bias": torch.tensor(-1e9).half(),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    assert not_finite(tmp_path / "m.safetensors") is None


def test_a_file_is_read_piece_by_piece_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite_weights, "PIECE", 64)
    weights = torch.ones(1000)
    weights[999] = float("nan")
    save_file({"a": torch.ones(7), "b": weights}, tmp_path / "m.safetensors")
    assert not_finite(tmp_path / "m.safetensors") == "b"


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100)}, path := tmp_path / "m.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="it ends before its tensors do"):
        not_finite(path)
