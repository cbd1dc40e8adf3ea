"""Base and adapter side by side, unmerged: nothing is calculated, the base's files are the store's
own, but for what ends an answer.

::

    *.safetensors, config.json, tokenizer …   the base
    adapters/<digest>/                        the adapter, in a folder named by its digest

The engine names what it serves by that digest too, so that no cache of it takes one adapter for
another.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.store import link_or_copy
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.answer_end import write_stops
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.optimizers.base import OptimizerArgs
from weighbridge.tasks.optimizers.lineage import base_and_adapter


class AdapterArgs(OptimizerArgs):
    """The base as it is, with the adapter applied while it serves."""

    kind: Literal["adapter"] = "adapter"

    @property
    def keeps_adapter(self) -> bool:
        return True


class Adapter:
    """Passes base and adapter on, linked."""

    Args: ClassVar[type[OptimizerArgs]] = AdapterArgs
    version: ClassVar[int] = 2
    format: ClassVar[Format] = "peft"
    faithful: ClassVar[Mapping[str, str] | None] = None
    lock: ClassVar[Path | None] = None

    def check(
        self, model: Path, args: AdapterArgs, workspace: Workspace, *, dry: bool = False
    ) -> None:
        """Refuse nothing: all that can be wrong shows only after the fine-tune."""

    def optimize(
        self, model: Artifact, data: Artifact, args: AdapterArgs, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        base, adapter = base_and_adapter(model, workspace, f"making {args.label()}")
        # vLLM keeps the prompts it has read by the adapter's name (vllm#42125): hence the digest.
        for source, to in ((base.path, out), (adapter.path, out / "adapters" / adapter.short)):
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                link_or_copy(path, to / path.relative_to(source))
        write_stops(out, load_tokenizer(out))
        return {"base": base.digest, "adapter": adapter.digest}
