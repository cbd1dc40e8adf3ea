"""The estimate of what training takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from weighbridge.tasks import training_memory as estimate
from weighbridge.tasks.data import Message, Row
from weighbridge.tasks.finetune_args import FinetuneArgs

HIDDEN, MIDDLE, VOCABULARY, LAYERS = 576, 1536, 49152, 30


@pytest.fixture
def shaped_like_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose configuration and tensors have the shapes of SmolLM2-135M."""
    config = {
        "hidden_size": HIDDEN,
        "intermediate_size": MIDDLE,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    layer = {
        "q": [HIDDEN, HIDDEN],
        "k": [HIDDEN // 3, HIDDEN],
        "v": [HIDDEN // 3, HIDDEN],
        "o": [HIDDEN, HIDDEN],
        "gate": [MIDDLE, HIDDEN],
        "up": [MIDDLE, HIDDEN],
        "down": [HIDDEN, MIDDLE],
    }
    tensors = [("embed", "BF16", [VOCABULARY, HIDDEN])] + [
        (f"model.layers.{number}.{name}.weight", "BF16", shape)
        for number in range(LAYERS)
        for name, shape in layer.items()
    ]
    monkeypatch.setattr(estimate, "tensors", lambda model: tensors)
    monkeypatch.setattr(estimate, "longest_row", lambda model, rows: (100, 20))
    return tmp_path


def gigabytes(model: Path, **changes: Any) -> float:
    args = FinetuneArgs(per_device_train_batch_size=4, **changes)
    return estimate.training_memory(model, [], args) / 1e9


def test_it_is_near_what_was_measured(shaped_like_smollm2: Path) -> None:
    # `python -m benchmarks.training --steps 2 --batch 4`: a peak of 2.36 GB.
    assert gigabytes(shaped_like_smollm2) == pytest.approx(2.36, rel=0.2)


def test_what_saves_memory_is_counted(shaped_like_smollm2: Path) -> None:
    usual = gigabytes(shaped_like_smollm2)
    assert gigabytes(shaped_like_smollm2, gradient_checkpointing=True) < usual
    assert gigabytes(shaped_like_smollm2, max_length=32, drop_long=True) < usual
    assert gigabytes(shaped_like_smollm2, completion_only_loss=False) > usual
    assert gigabytes(shaped_like_smollm2, r=64) > usual


def test_the_longest_row_is_counted_in_tokens(tiny_model: Path) -> None:
    rows = [
        Row(
            prompt=[Message(role="user", content="hello " * count)],
            completion=[Message(role="assistant", content="yes")],
        )
        for count in (1, 40, 3)
    ]
    prompt, answer = estimate.longest_row(tiny_model, rows)
    assert 40 <= prompt <= 140
    assert 1 <= answer <= 20
