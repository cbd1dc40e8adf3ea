"""What fine-tuning is told and what training returns, in a module that does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from weighbridge.core.artifact import Artifact
from weighbridge.core.field_types import regular_expression
from weighbridge.core.stage_cache import AddedLater

OnLog = Callable[[int, dict[str, float]], None]
"""Called after a step with its number and its figures: loss, learning rate, …"""


class FinetuneArgs(BaseModel):
    """LoRA fine-tuning. The names and meanings are those of PEFT, transformers and TRL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1, description="Rank of the adapter.")
    lora_alpha: int = Field(
        32, ge=1, description="Scale of the adapter: it counts `lora_alpha / r`."
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on the adapter's input while training."
    )
    target_modules: str | tuple[str, ...] = Field(
        "all-linear",
        description="Which layers get an adapter: `all-linear`, names, or one regular expression.",
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak of the schedule.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial"
    ] = "cosine"
    warmup_steps: int = Field(
        0, ge=0, description="Steps over which the learning rate rises from 0."
    )
    weight_decay: float = Field(0.0, ge=0)
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    # transformers' own way to say "not set", kept with its name; 0 would mean no training at all.
    max_steps: int = Field(
        -1, ge=-1, description="Optimizer steps in all, whatever the epochs say; -1: by epochs."
    )
    per_device_train_batch_size: int = Field(
        8, ge=1, description="Rows per device and forward pass."
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, description="Forward passes per optimizer step."
    )
    max_length: int = Field(
        1024, ge=8, description="Most tokens of a row, prompt and completion together."
    )
    drop_long: bool = Field(
        False, description="Leave rows out that are longer than max_length; off: refuse the data."
    )
    packing: bool = Field(
        False, description="Several rows per sequence of max_length; they don't see each other."
    )
    completion_only_loss: bool = Field(
        True, description="Learn completions alone; off: prompts as well."
    )
    bf16: bool = Field(False, description="Mixed precision in bfloat16.")
    gradient_checkpointing: bool = Field(
        False, description="Less memory for about a fifth more time."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    nodes: Annotated[int, AddedLater] = Field(
        1,
        ge=1,
        description="Machines that train together, each started by what `weighbridge torchrun` "
        "prints; every process has batches of its own.",
    )
    processes_per_node: Annotated[int, AddedLater] = Field(
        1, ge=1, description="Training processes on each machine: one for each graphics card."
    )
    seed: int = Field(
        0,
        ge=0,
        # numpy takes no larger one.
        lt=1 << 32,
        description="Of the adapter's first weights, dropout and the order of the rows.",
    )
    save_steps: int = Field(
        100, ge=1, description="Steps between checkpoints; a killed run goes on from the last."
    )
    logging_steps: int = Field(1, ge=1, description="Steps between points of the live loss curve.")

    @property
    def ranks(self) -> int:
        """How many processes train together."""
        return self.nodes * self.processes_per_node

    @field_validator("target_modules")
    @classmethod
    def _can_be_looked_for(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return regular_expression(names) if isinstance(names, str) else names

    @model_validator(mode="after")
    def _takes_steps(self) -> FinetuneArgs:
        if self.max_steps == 0:
            raise ValueError("max_steps must be -1 or at least 1")
        return self


class Finetuned(BaseModel):
    """What fine-tuning leaves."""

    model_config = ConfigDict(frozen=True)

    adapter: Artifact = Field(description="PEFT adapter.")
    merged: Artifact = Field(
        description="The base with the adapter merged in, in the base's own number type."
    )
    losses: list[dict[str, float]] = Field(
        description="step, loss, learning_rate, … of every step, once each."
    )
    facts: dict[str, str] = Field(
        default_factory=dict, description="What was used: versions, rows, parameters."
    )
    seconds: float = Field(
        description="Of this call; steps of an interrupted run before it are not in it."
    )


def ignore(step: int, figures: dict[str, float]) -> None:
    """Do nothing: a listener for those who want no live curve."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished training run."""

    adapter: Path
    """Folder with the adapter as the trainer wrote it."""
    losses: list[dict[str, float]]
    facts: dict[str, str]
