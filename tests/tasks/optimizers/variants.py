"""Variants of a model, made as stage optimize makes them."""

from pathlib import Path
from typing import Any

from tests.tasks.optimizers.rows import write_rows
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.measurement import Variant
from weighbridge.tasks.optimize import OptimizeArgs, optimize


def made(
    kind: str, variants: list[dict[str, Any]], model: Path, workspace: Workspace, scratch: Path
) -> list[Variant]:
    """Make variants of a model by one optimizer, with rows of our own as data."""
    weights = workspace.store.add(model, "safetensors", adopt=False)
    data = workspace.store.add(write_rows(scratch / "rows"), "jsonl", adopt=False)
    args = OptimizeArgs.model_validate(
        {"variants": [{"kind": kind, **variant} for variant in variants]}
    )
    return optimize(weights, data, args, workspace).variants
