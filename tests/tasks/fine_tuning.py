"""A fine-tune of seconds: its rows, its arguments, and what it leaves."""

from pathlib import Path

from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import Message, Row, write_rows
from weighbridge.tasks.finetune_args import FinetuneArgs

STEPS = 6


def chat(number: int) -> Row:
    question = Message(role="user", content=f"Order {number} is late. What now?")
    return Row(
        prompt=[question], completion=[Message(role="assistant", content=f'{{"order": {number}}}')]
    )


def stored_model(folder: Path, workspace: Workspace) -> Artifact:
    return workspace.store.add(folder, "safetensors", {"uri": "file:///models/tiny"}, adopt=False)


def stored_rows(rows: list[Row], workspace: Workspace) -> Artifact:
    with workspace.store.scratch() as scratch:
        for split in ("train", "validation", "test"):
            write_rows(rows, scratch / f"{split}.jsonl")
        return workspace.store.add(scratch, "jsonl")


def arguments(**changes: object) -> FinetuneArgs:
    given = {
        "max_steps": STEPS,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "r": 4,
    }
    return FinetuneArgs.model_validate({**given, **changes})


def run_folders(workspace: Workspace) -> list[Path]:
    return [path for path in (workspace.settings.home / "runs").glob("*") if path.is_dir()]
