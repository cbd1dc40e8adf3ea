"""What makes a servable artifact out of merged weights: what an `optimizer` plugin offers."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.plugins import load
from weighbridge.core.workspace import Workspace


class OptimizerArgs(BaseModel):
    """Base of every optimizer's arguments; `kind` names the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str

    def label(self) -> str:
        """Return the short name of the variant this makes, unique within a recipe: `gguf-Q8_0`."""
        return self.kind

    @property
    def keeps_adapter(self) -> bool:
        """Whether it leaves a fine-tune's adapter out of the weights, and so needs one."""
        return False


class Optimizer(Protocol):
    """Turns a safetensors model into an artifact that some engine serves."""

    Args: ClassVar[type[OptimizerArgs]]
    version: ClassVar[int]
    format: ClassVar[Format]
    faithful: ClassVar[Mapping[str, str] | None]
    """Options with which it changes a model least; None: it always loses something. Engines are
    checked with those.
    """
    lock: ClassVar[Path | None]

    def check(self, model: Path, args: Any, workspace: Workspace, *, dry: bool = False) -> None:
        """Refuse what cannot be right, before time is spent; only the model's shape and
        configuration are read.

        With `dry` nothing is fetched, and what cannot be known without is left out. Raises BadInput
        for a model or arguments that cannot work, Unavailable where a tool or room on the disk
        lacks.
        """

    def optimize(
        self, model: Artifact, data: Artifact, args: Any, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        """Write the servable files into `out`, prove them, and return facts worth keeping.

        `data` is the canonical data artifact (`train.jsonl`, `validation.jsonl`, `test.jsonl`), to
        calibrate and prove. Raises BadInput for a model it does not know, Unavailable when a tool
        cannot be run.
        """


@cache
def load_optimizer(kind: str) -> Optimizer:
    """Return the optimizer plugin of this name.

    Raises:
        BadInput: There is none.
    """
    optimizer: Optimizer = load("optimizer", kind)()
    return optimizer
