"""Which trainer is taken, and that it makes no difference to what is learned."""

from pathlib import Path
from typing import Any

import pytest

from weighbridge.tasks import hf_models
from weighbridge.tasks.encoding import Encoded
from weighbridge.tasks.finetune_args import FinetuneArgs

ROWS = [
    Encoded(prompt=list(range(10, 10 + prompt)), completion=list(range(50, 50 + answer)))
    for prompt, answer in ((9, 3), (4, 7), (12, 1), (6, 5))
]


def args(**changes: Any) -> FinetuneArgs:
    return FinetuneArgs(
        **{"r": 4, "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
        | {"gradient_accumulation_steps": 2}
        | changes
    )


def losses(model: Path, folder: Path, arguments: FinetuneArgs) -> tuple[str, list[float]]:
    from weighbridge.tasks.trainers import make_trainer

    with hf_models.quiet(), hf_models.threads(model):
        trainer = make_trainer(model, ROWS, arguments, folder)
        trainer.train()
    figures = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return type(trainer).__name__, figures


@pytest.mark.parametrize("completion_only", [True, False])
def test_both_trainers_learn_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, completion_only: bool
) -> None:
    from weighbridge.tasks import trainers

    arguments = args(completion_only_loss=completion_only)
    name, plain = losses(tiny_model, tmp_path / "plain", arguments)
    assert name == "Trainer"
    monkeypatch.setattr(trainers, "MOST_LOGITS", 1)
    name, sft = losses(tiny_model, tmp_path / "sft", arguments)
    assert name == "SFTTrainer"
    assert len(plain) == 2
    assert plain == pytest.approx(sft, rel=1e-4)


@pytest.mark.parametrize("feature", [{"packing": True}, {"gradient_checkpointing": True}])
def test_a_feature_of_sft_trainer_brings_it(
    tiny_model: Path, tmp_path: Path, feature: dict[str, bool]
) -> None:
    from weighbridge.tasks.trainers import make_trainer

    with hf_models.quiet():
        trainer = make_trainer(tiny_model, ROWS, args(**feature), tmp_path)
    assert type(trainer).__name__ == "SFTTrainer"
