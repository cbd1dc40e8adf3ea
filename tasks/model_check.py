"""What a downloaded model must be before hours are spent on it: of bounded size in every part,
of numbers throughout, without code of its own, and able to read the rows.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.processes import Finished, run
from weighbridge.core.progress import track
from weighbridge.core.safetensors_header import tensors
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.finite_weights import not_finite
from weighbridge.tasks.model_files import read_object

VERSION: Final = 1
WEIGHTS_VERSION: Final = 1
ROWS: Final = 100
"""Rows of each split that are tried."""
SECONDS: Final = 20.0
"""CPU time that the tokenizer and these rows may take; the largest tokenizers that we know load
within two.
"""
MEMORY: Final = 4 << 30
"""Bytes of address space for the same; a process with a large tokenizer takes an eighth of it."""
EMBEDDINGS: Final = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings")
"""How models call the matrix that has a row for each token."""
LAYERS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
WIDTHS: Final = ("hidden_size", "n_embd", "d_model", "vocab_size")
"""Names in a configuration of what some tensor has as a dimension."""


class ModelChecked(BaseModel):
    """What was found, once for the same files and rows."""

    embeddings: int
    """Tokens that the model has embeddings for; -1 where no tensor tells."""


def check(model: Artifact, data: Artifact, workspace: Workspace) -> None:
    """Refuse a model that cannot read the rows, has weights that are no numbers, or whose files are
    made to do harm.

    Configuration, tokenizer and chat templates are tried in a process with limits.

    Raises:
        BadInput: the model cannot be trained on these rows, or released.
    """
    # Not the weights: a thousand revisions of them have one tokenizer.
    files = {
        file.path: file.sha256
        for file in workspace.store.files(model.digest)
        if not _is_weights(file.path)
    }
    shapes = {name: shape for name, _, shape in tensors(model.path)}
    check_configuration(read_object("config.json", model.path / "config.json"), shapes)
    embeddings = embedding_rows(shapes)

    def compute() -> ModelChecked:
        _probe(model.path, data.path, embeddings, workspace)
        return ModelChecked(embeddings=embeddings)

    inputs = {"files": files, "data": data, "embeddings": embeddings, "rows": ROWS}
    workspace.checks.run("model", VERSION, ModelChecked, inputs, compute)
    check_weights(model, workspace)


def check_weights(model: Artifact, workspace: Workspace) -> None:
    """Refuse weights that are no numbers; each file is read once on a machine.

    Raises:
        BadInput: naming the tensor.
    """
    files = [file for file in workspace.store.files(model.digest) if _is_weights(file.path)]
    with track("checking the weights", len(files), "files") as done:
        for number, file in enumerate(files, start=1):
            path = model.path / file.path

            def compute(path: Path = path) -> str:
                if tensor := not_finite(path):
                    wrong = f"tensor {tensor} holds NaN or infinity"
                    raise BadInput(f"checking {path.name}", wrong, "give weights that are numbers")
                return "numbers"

            workspace.checks.run("weights", WEIGHTS_VERSION, str, {"file": file.sha256}, compute)
            done(number)


def check_configuration(config: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> None:
    """Refuse a configuration that asks for another model than the weights are of.

    Such a model would be made, layer by layer, before anybody sees that it has no weights.

    Raises:
        BadInput: it does.
    """
    doing = "checking config.json"
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    # Every layer has a tensor of its own; experts have, or are a dimension of one.
    bounds = dict.fromkeys(LAYERS, len(shapes)) | dict.fromkeys(WIDTHS, widest)
    bounds |= dict.fromkeys(EXPERTS, max(len(shapes), widest))
    # Of models for several kinds of input, the part that reads text.
    for part in (config, config.get("text_config")):
        if not isinstance(part, Mapping):
            continue
        for name, most in bounds.items():
            value = part.get(name)
            if isinstance(value, int | float) and not 0 <= value <= most:
                wrong = f"{name} is {value:g}, and weights of such shapes have at most {most}"
                raise BadInput(doing, wrong, "give configuration and weights of one model")


def _is_weights(path: str) -> bool:
    return path.endswith(".safetensors")


def embedding_rows(shapes: Mapping[str, list[int]]) -> int:
    """Return how many tokens the model has embeddings for; -1 where no tensor tells."""
    rows = [
        shape[0]
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(tuple(f"{matrix}.weight" for matrix in EMBEDDINGS))
    ]
    return min(rows, default=-1)


def _probe(model: Path, data: Path, embeddings: int, workspace: Workspace) -> None:
    with workspace.store.scratch() as scratch:
        report = scratch / "report"
        module = "weighbridge.tasks.model_probe"
        command: list[str | Path] = [sys.executable, "-P", "-m", module, model, data]
        command += [str(ROWS), str(embeddings), str(SECONDS), str(MEMORY), report]
        environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        finished = run("the check of the model", command, env=environment, cwd=scratch)
        if report.exists():
            raise BadInput(*json.loads(report.read_text()))
        _require_end(finished)


def _require_end(finished: Finished) -> None:
    """Raise where the process did not come to its end: by its limits, or for a reason we don't
    foresee.
    """
    if finished.status == 0:
        return
    wrong = finished.tail(1)
    if finished.status < 0 or "MemoryError" in finished.output:
        wrong = (
            f"its tokenizer or chat template takes more than {SECONDS:g} s or "
            f"{MEMORY >> 30} GiB of memory for {ROWS} rows"
        )
    raise BadInput(
        "checking the model on the first rows", wrong, "give a model that others serve, too"
    )
