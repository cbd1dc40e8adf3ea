"""The trainer of stage finetune: transformers' own, or TRL's where its features are asked for.

Measured side by side with `python -m benchmarks.training`: see `weighbridge.tasks.finetune`.
Imports torch: import it late.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import one_line
from weighbridge.tasks import hf_models
from weighbridge.tasks.encoding import Encoded, load_tokenizer
from weighbridge.tasks.finetune_args import FinetuneArgs
from weighbridge.tasks.training_memory import MOST_LOGITS

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

IGNORE: Final = -100
"""Label of a token that no loss is taken of."""


def make_trainer(base: Path, rows: list[Encoded], args: FinetuneArgs, folder: Path) -> Trainer:
    """Return the trainer of a LoRA adapter on `base`, ready to train in `folder`.

    Raises:
        BadInput: the model can't be loaded, or the adapter does not fit it.
    """
    model = hf_models.load_model(base)
    make = _sft_trainer if _needs_sft(model, rows, args) else _plain_trainer
    try:
        with warnings.catch_warnings():
            # Merged into weights that two layers share, such an adapter would change both layers.
            warnings.filterwarnings("error", message=".*a tied layer is part of the adapter")
            trainer = make(model, base, rows, args, folder)
    except (ValueError, UserWarning) as exc:
        wrong = one_line(exc, 300)
        raise BadInput("preparing fine-tuning", wrong, "check finetune.target_modules") from exc
    # Without a progress bar, the trainer prints the figures of every step to standard output.
    trainer.remove_callback(PrinterCallback)
    return trainer


def several_ranks() -> bool:
    """Whether torchrun has started more than this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _needs_sft(model: PreTrainedModel, rows: list[Encoded], args: FinetuneArgs) -> bool:
    """Whether SFTTrainer's own features are of use: it packs rows, checkpoints activations, and
    never holds all logits at once.
    """
    # On a GPU its LM head scores the learned tokens alone, on a processor all of them.
    if args.packing or args.gradient_checkpointing or hf_models.device() != "cpu":
        return True
    columns = max(len(row.completion) if args.completion_only_loss else len(row) for row in rows)
    vocabulary = model.config.get_text_config().vocab_size
    return bool(args.per_device_train_batch_size * columns * vocabulary > MOST_LOGITS)


def _lora(args: FinetuneArgs) -> LoraConfig:
    from peft import LoraConfig

    targets = (
        args.target_modules if isinstance(args.target_modules, str) else list(args.target_modules)
    )
    return LoraConfig(
        r=args.r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def _sft_trainer(
    model: PreTrainedModel, base: Path, rows: list[Encoded], args: FinetuneArgs, folder: Path
) -> Trainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        **_settings(args, folder),
        # Rows are measured before: without packing there is nothing to cut.
        max_length=args.max_length if args.packing else None,
        packing=args.packing,
        activation_checkpointing=args.gradient_checkpointing,
    )
    return SFTTrainer(
        model=model,
        args=_on_one_gpu(config),
        # Ids and labels: the trainer adds nothing to them.
        train_dataset=Dataset.from_list(_labelled(rows, args)),
        processing_class=load_tokenizer(base),
        peft_config=_lora(args),
    )


def _plain_trainer(
    model: PreTrainedModel, base: Path, rows: list[Encoded], args: FinetuneArgs, folder: Path
) -> Trainer:
    from datasets import Dataset
    from peft import get_peft_model

    # As SFTTrainer does: PEFT draws the adapter's first weights.
    set_seed(args.seed)
    return Trainer(
        model=get_peft_model(model, _lora(args)),
        args=_on_one_gpu(TrainingArguments(**_settings(args, folder))),
        train_dataset=Dataset.from_list(_labelled(rows, args)),
        data_collator=_batch,
        compute_loss_func=_loss,
        processing_class=load_tokenizer(base),
    )


def _on_one_gpu(config: TrainingArguments) -> TrainingArguments:
    if not several_ranks():
        # nn.DataParallel is slow, and SFTTrainer refuses it: of several GPUs without a launcher,
        # one is used.
        config._n_gpu = min(1, config.n_gpu)
    return config


def _labelled(rows: list[Encoded], args: FinetuneArgs) -> list[dict[str, list[int]]]:
    labelled = []
    for row in rows:
        # Nothing predicts the first token of a row.
        ignored = len(row.prompt) if args.completion_only_loss else 1
        ids = row.prompt + row.completion
        labelled.append({"input_ids": ids, "labels": [IGNORE] * ignored + ids[ignored:]})
    return labelled


def _batch(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """Return a batch that asks for no logits but those that a loss is taken of.

    Padded on the left, all completions end in the last column: prompts, usually most of the tokens,
    cost no product with the vocabulary.
    """
    width = max(len(row["input_ids"]) for row in rows)
    ids, labels, mask = (
        torch.tensor([[fill] * (width - len(values)) + values for values in columns])
        for fill, columns in (
            (0, [row["input_ids"] for row in rows]),
            (IGNORE, [row["labels"] for row in rows]),
            (0, [[1] * len(row["input_ids"]) for row in rows]),
        )
    )
    first = int((labels != IGNORE).any(0).nonzero()[0])
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        # Without them, models count from the first column, which here is padding.
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
        # One more: the logits that predict a column stand in the one before.
        "logits_to_keep": width - max(first, 1) + 1,
        "use_cache": False,
    }


def _loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Return the mean negative log-likelihood over the tokens of a whole optimizer step."""
    logits = outputs.logits[:, :-1].float()
    targets = labels[:, -logits.shape[1] :]
    total = cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / ((targets != IGNORE).sum() if num_items_in_batch is None else num_items_in_batch)


def _settings(args: FinetuneArgs, folder: Path) -> dict[str, Any]:
    """Return what both trainers are told."""
    on_cpu = hf_models.device() == "cpu"
    return {
        "output_dir": str(folder),
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": args.lr_scheduler_type,
        "warmup_steps": args.warmup_steps,
        "weight_decay": args.weight_decay,
        "num_train_epochs": args.num_train_epochs,
        "max_steps": args.max_steps,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "bf16": args.bf16,
        "max_grad_norm": args.max_grad_norm,
        "seed": args.seed,
        "data_seed": args.seed,
        "save_strategy": "steps",
        "save_steps": args.save_steps,
        # Two: a run that is killed while it writes the newest one still has the one before.
        "save_total_limit": 2,
        # Every step: a mean over several would differ after a resume between two of them.
        "logging_steps": 1,
        # Else the trainer replaces a loss that is no number by the mean of the others.
        "logging_nan_inf_filter": False,
        # Figures go to `on_log`; loggers of the trainer's own would open runs beside the flow's.
        "report_to": "none",
        "disable_tqdm": True,
        "push_to_hub": False,
        "use_cpu": on_cpu,
        # Pinned memory speeds up copies to a GPU; without one torch warns of it.
        "dataloader_pin_memory": not on_cpu,
    }
