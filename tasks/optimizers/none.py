"""The weights as they are, in safetensors, for engines that take those: kept or cast to one number
type.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.disk import require_room
from weighbridge.core.errors import BadInput
from weighbridge.core.progress import track
from weighbridge.core.safetensors_header import read_header
from weighbridge.core.store import link_or_copy
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.answer_end import write_stops
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.model_files import INDEX, read_object
from weighbridge.tasks.optimizers.base import OptimizerArgs

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""torch's names of number types, and safetensors'."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
TAKEN = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".md"})


class UnchangedArgs(OptimizerArgs):
    """Unquantized weights."""

    kind: Literal["none"] = "none"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Number type of the weights; auto: as they come."
    )

    def label(self) -> str:
        return "safetensors" if self.dtype == "auto" else f"safetensors-{self.dtype}"


class Unchanged:
    """Passes the model on; linked where nothing changes."""

    Args: ClassVar[type[OptimizerArgs]] = UnchangedArgs
    version: ClassVar[int] = 2
    format: ClassVar[Format] = "safetensors"
    faithful: ClassVar[Mapping[str, str] | None] = {"dtype": "auto"}
    lock: ClassVar[Path | None] = None

    def check(
        self, model: Path, args: UnchangedArgs, workspace: Workspace, *, dry: bool = False
    ) -> None:
        doing, weights = f"making {args.label()}", _weights(model)
        if not weights:
            raise BadInput(
                doing,
                "there are no *.safetensors in the model",
                "give a model in the Hugging Face layout",
            )
        if args.dtype != "auto":
            # What is of that type already is linked, and takes nothing.
            cast = [path for path in weights if _kinds(path) - {DTYPES[args.dtype]}]
            needed = sum(path.stat().st_size for path in cast)
            require_room(needed, "the result", workspace.store.root, doing)

    def optimize(
        self, model: Artifact, data: Artifact, args: UnchangedArgs, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        stored_type = DTYPES.get(args.dtype, "")
        total = 0
        files = [
            path for path in sorted(model.path.iterdir()) if path.is_file() and path.suffix in TAKEN
        ]
        with track(f"making {args.label()}", len(files), "files") as update:
            for done, path in enumerate(files, start=1):
                if path.suffix == ".safetensors" and stored_type and _kinds(path) - {stored_type}:
                    _cast(path, out / path.name, args.dtype)
                else:
                    link_or_copy(path, out / path.name)
                update(done)
        # The weights of a fine-tune have been told so; a model that is released as it came has not.
        if (out / "tokenizer.json").exists():
            write_stops(out, load_tokenizer(out))
        if stored_type:
            total = sum(_tensor_bytes(path) for path in _weights(out))
            _tell(out, args.dtype, total)
        kinds = sorted({kind for path in _weights(out) for kind in _kinds(path)})
        return {"dtype": ", ".join(kinds)}


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _kinds(path: Path) -> set[str]:
    """Return the floating-point types in a safetensors file."""
    return {str(tensor["dtype"]) for tensor in read_header(path).values()} & FLOATS


def _tensor_bytes(path: Path) -> int:
    return sum(
        int(end) - int(begin)
        for begin, end in (t["data_offsets"] for t in read_header(path).values())
    )


def _cast(source: Path, to: Path, dtype: str) -> None:
    """Write the tensors in another type. Raises BadInput where a weight is too large for it."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118  # not a dict: it has no iterator
            tensor = file.get_tensor(name)
            if tensor.is_floating_point():
                tensor = tensor.to(getattr(torch, dtype))
                if not torch.isfinite(tensor).all():
                    wrong = f"tensor {name} holds weights that {dtype} cannot"
                    raise BadInput(f"casting the model to {dtype}", wrong, "choose bfloat16")
            tensors[name] = tensor
    save_file(tensors, to, metadata)


def _tell(folder: Path, dtype: str, total: int) -> None:
    """Let the configuration and the index say what the weights now are."""
    config = read_object("config.json", folder / "config.json")
    # The older name of `dtype`: the base's would contradict the new one.
    config.pop("torch_dtype", None)
    _rewrite(folder / "config.json", {**config, "dtype": dtype})
    if (folder / INDEX).exists():
        index = read_object(INDEX, folder / INDEX)
        _rewrite(
            folder / INDEX,
            {**index, "metadata": {**(index.get("metadata") or {}), "total_size": total}},
        )


def _rewrite(path: Path, value: dict[str, Any]) -> None:
    path.unlink()  # it may be a link to the store's own, read-only copy
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
