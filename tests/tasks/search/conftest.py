"""Rows and one artifact for weighings of nothing real."""

import json
from pathlib import Path

import pytest

from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.measurement import Variant


@pytest.fixture
def data(tmp_path: Path, workspace: Workspace) -> Artifact:
    (tmp_path / "rows").mkdir()
    rows = [
        json.dumps({"prompt": f"what is {number} doubled", "completion": f"it is {2 * number}"})
        for number in range(30)
    ]
    for split, part in {"train": rows[:20], "validation": rows[20:25], "test": rows[25:]}.items():
        (tmp_path / "rows" / f"{split}.jsonl").write_text("\n".join(part) + "\n")
    return workspace.store.add(tmp_path / "rows", "jsonl")


@pytest.fixture
def variant(tmp_path: Path, workspace: Workspace) -> Variant:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.gguf").write_text(json.dumps({}))
    artifact = workspace.store.add(tmp_path / "model", "gguf")
    return Variant(label="whole", optimizer="made", artifact=artifact)
