"""An adapter is kept and merged only where every weight is a number."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora import Linear, LoraConfig
from safetensors.torch import save_file

from weighbridge.core.errors import BadInput
from weighbridge.tasks import merging


def test_an_adapter_whose_last_step_made_no_numbers_is_not_kept(tmp_path: Path) -> None:
    (trained := tmp_path / "trained").mkdir()
    weights = {"lora_A.weight": torch.ones(2, 2), "lora_B.weight": torch.full((2, 2), torch.nan)}
    save_file(weights, trained / "adapter_model.safetensors")
    with pytest.raises(BadInput) as caught:
        merging.write_adapter(trained, tmp_path / "out", "file:///base")
    assert "tensor lora_B.weight of the trained adapter holds NaN or infinity" in str(caught.value)
    assert "lower finetune.learning_rate" in str(caught.value)


@pytest.mark.parametrize(("dtype", "fits"), [(torch.float16, False), (torch.bfloat16, True)])
def test_merged_weights_that_their_type_cannot_hold_are_refused(
    dtype: torch.dtype, fits: bool
) -> None:
    base = torch.nn.Linear(2, 2, dtype=dtype)
    layer = Linear(base, "default", LoraConfig(), r=1, lora_alpha=1)
    # As it is trained, whatever the base's type.
    layer.lora_A.float(), layer.lora_B.float()
    torch.nn.init.constant_(layer.lora_A["default"].weight, 300.0)
    torch.nn.init.constant_(layer.lora_B["default"].weight, 300.0)
    if fits:
        merging._merge(layer)
        assert torch.isfinite(base.weight).all()
        return
    with pytest.raises(BadInput, match="a merged weight is larger than float16 can be"):
        merging._merge(layer)
