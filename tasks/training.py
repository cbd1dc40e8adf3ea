"""The training run of stage finetune: checkpoints and losses. Imports torch: import it late."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from weighbridge.core import progress
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_bytes, replace_text
from weighbridge.tasks.encoding import Encoded
from weighbridge.tasks.finetune_args import FinetuneArgs, OnLog, TrainingResult
from weighbridge.tasks.ranks import is_first, is_first_of_machine
from weighbridge.tasks.trainers import make_trainer, several_ranks

WHOLE: Final = "weighbridge-whole.json"
"""Written last into a checkpoint; it names every file and its size."""
KEPT: Final = ("loss", "learning_rate", "grad_norm", "epoch", "mean_token_accuracy", "entropy")
"""Figures that a resumed run gives as an uninterrupted one does; counts of tokens begin again at 0.
"""
T = TypeVar("T")
logger = logging.getLogger(__name__)


def train(
    base: Path,
    rows: list[Encoded],
    args: FinetuneArgs,
    folder: Path,
    on_log: OnLog,
    on_checkpoint: Callable[[Path], None],
) -> TrainingResult:
    """Train in `folder`, going on from the last whole checkpoint in it. See
    `weighbridge.tasks.finetune.finetune`. `on_checkpoint` is told each one that is whole.
    """
    checkpoint = last_whole(folder)
    # One rank tidies up: the others would delete under its hands.
    if is_first():
        _discard_others(folder, checkpoint)
    trainer = make_trainer(base, rows, args, folder)
    checkpoint = _of_the_first(folder, checkpoint)
    logger.info(
        "fine-tuning on %d rows%s",
        len(rows),
        f", going on after {checkpoint.name}" if checkpoint else "",
    )
    with progress.track("fine-tuning", _steps(trainer), "steps") as update:
        watch = _Watch(args.logging_steps, on_log, on_checkpoint, update)
        trainer.add_callback(watch)
        if checkpoint and (finished := _finished(checkpoint)):
            # The trainer would take one step too many.
            trainer.state = finished
            watch.on_train_begin(trainer.args, finished, trainer.control)
            return TrainingResult(checkpoint, losses(finished), _facts(trainer, checkpoint))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError as exc:
            remedy = (
                "lower per_device_train_batch_size or max_length, or set "
                "gradient_checkpointing and bf16"
            )
            raise Unavailable("fine-tuning", "the GPU's memory is too small", remedy) from exc
    adapter = folder / "adapter"
    trainer.save_model(str(adapter))
    return TrainingResult(adapter, losses(trainer.state), _facts(trainer, checkpoint))


def losses(state: TrainerState) -> list[dict[str, float]]:
    """Return the figures of every step, once each."""
    steps = {entry["step"]: _figures(entry) for entry in state.log_history if "loss" in entry}
    return [{"step": float(step), **figures} for step, figures in sorted(steps.items())]


def last_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end."""
    checkpoints = sorted(
        folder.glob("checkpoint-*"),
        key=lambda path: int(path.name.rpartition("-")[2]),
        reverse=True,
    )
    return next((path for path in checkpoints if _is_whole(path)), None)


def _finished(checkpoint: Path) -> TrainerState | None:
    """Return the state of a run whose last step this checkpoint is."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if state.global_step >= state.max_steps else None


def once(compute: Callable[[], T]) -> T:
    """Let the first rank compute, and give its result to all.

    The trainer has joined the ranks by then.
    """
    if not several_ranks():
        return compute()
    results: list[Any] = [compute() if is_first() else None]
    # It fills the list in place: the other ranks find the first one's result in it.
    torch.distributed.broadcast_object_list(results)
    result: T = results[0]
    return result


def _of_the_first(folder: Path, checkpoint: Path | None) -> Path | None:
    """Return the checkpoint that the first rank goes on from, brought to machines that lack it.

    Only the first rank's machine writes checkpoints; they hold an adapter, and are small.
    """
    if not several_ranks():
        return checkpoint
    name = once(lambda: checkpoint.name if checkpoint else "")
    if not name:
        return None
    there = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(there, _is_whole(folder / name))
    if not all(there):
        files = once(lambda: _contents(folder / name))
        if not _is_whole(folder / name) and is_first_of_machine():
            for path, content in files.items():
                replace_bytes(folder / name / path, content)
        torch.distributed.barrier()
    return folder / name


def _contents(checkpoint: Path) -> dict[str, bytes]:
    """Return the files of a checkpoint, what marks it as whole last."""
    paths = [*_files(checkpoint), checkpoint / WHOLE]
    return {path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in paths}


class _Watch(TrainerCallback):  # type: ignore[misc] # no types there
    """Tells progress and losses, stops at a loss that is no number, marks checkpoints as whole."""

    def __init__(
        self,
        every: int,
        on_log: OnLog,
        on_checkpoint: Callable[[Path], None],
        update: Callable[[float], None],
    ) -> None:
        self._every = every
        self._on_log = on_log
        self._on_checkpoint = on_checkpoint
        self._update = update
        self._since: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        for entry in losses(state):
            self._tell(int(entry.pop("step")), entry, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        self._update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **unused: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._check(logs, state.global_step)
            self._tell(state.global_step, _figures(logs), state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **unused: Any
    ) -> None:
        # The trainer calls this when the checkpoint's own files are written.
        if state.is_world_process_zero:
            checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            _mark_whole(checkpoint)
            self._on_checkpoint(checkpoint)

    def _check(self, logs: dict[str, float], step: int) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                remedy = (
                    "lower finetune.learning_rate, lengthen warmup_steps, or look for broken rows"
                )
                raise BadInput(
                    "fine-tuning", f"the {name} of step {step} is {float(logs[name])}", remedy
                )

    def _tell(self, step: int, figures: dict[str, float], state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        self._since.append(figures["loss"])
        if step % self._every == 0 or step == state.max_steps:
            mean = math.fsum(self._since) / len(self._since)
            self._on_log(step, {**figures, "loss": mean})
            self._since.clear()


def _steps(trainer: Trainer) -> int:
    """Return how many optimizer steps the whole run has."""
    # The trainer counts them only when it begins, and the progress bar begins before.
    settings = trainer.args
    if settings.max_steps > 0:
        return int(settings.max_steps)
    rows = settings.per_device_train_batch_size * settings.world_size
    batches: int = math.ceil(len(trainer.train_dataset) / rows)
    each_epoch: int = math.ceil(batches / settings.gradient_accumulation_steps)
    steps: int = math.ceil(settings.num_train_epochs * each_epoch)
    return steps


def _facts(trainer: Trainer, checkpoint: Path | None) -> dict[str, str]:
    trainable = sum(
        parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad
    )
    return {
        "trainer": f"{type(trainer).__module__.partition('.')[0]}.{type(trainer).__name__}",
        **{name: version(name) for name in ("trl", "peft", "transformers", "torch")},
        "device": str(trainer.args.device),
        "steps": str(trainer.state.global_step),
        "trainable_parameters": str(trainable),
        "parameters": str(
            sum(parameter.numel() for parameter in trainer.model.parameters()) - trainable
        ),
        "resumed_from": checkpoint.name if checkpoint else "",
        **({"ranks": str(trainer.args.world_size)} if several_ranks() else {}),
    }


def _figures(entry: dict[str, float]) -> dict[str, float]:
    return {name: float(entry[name]) for name in KEPT if name in entry}


def _mark_whole(checkpoint: Path) -> None:
    sizes = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)
    }
    replace_text(checkpoint / WHOLE, json.dumps(sizes))


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / WHOLE).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _files(checkpoint: Path) -> list[Path]:
    return [
        path for path in checkpoint.rglob("*") if path.is_file() and not path.name.startswith(WHOLE)
    ]


def _discard_others(folder: Path, checkpoint: Path | None) -> None:
    """Remove half-written checkpoints: they would count among those that are kept."""
    for path in folder.glob("checkpoint-*"):
        if not _is_whole(path):
            logger.warning(
                "%s was not written to its end: going on from %s",
                path.name,
                checkpoint or "the start",
            )
            shutil.rmtree(path)
