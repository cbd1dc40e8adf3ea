"""GGUF for llama.cpp: converted by its own converter, quantized in numpy or by its own tools, and
proved.

The weights are converted once, without loss, and every variant is made from that. A variant counts
only if the engine loads it, answers, and cuts every text of the data into the tokens that the model
was trained on.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.environments import locate
from weighbridge.core.gguf_header import Header, read_header
from weighbridge.core.machine import cores
from weighbridge.core.plugins import suggestion
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engines.base import engine_class
from weighbridge.tasks.model_files import copy_all_but_weights
from weighbridge.tasks.optimizers import gguf_checks as checks
from weighbridge.tasks.optimizers import proof
from weighbridge.tasks.optimizers.base import OptimizerArgs
from weighbridge.tasks.optimizers.gguf_conversion import (
    BASE_VERSION,
    LOCK,
    check_conversion,
    convert,
    convert_adapter,
    importance_matrix,
    quantize_natively,
    requantize,
)
from weighbridge.tasks.optimizers.gguf_quantizations import QUANTIZATIONS, WHOLE
from weighbridge.tasks.optimizers.lineage import base_and_adapter

logger = logging.getLogger(__name__)


class GgufArgs(OptimizerArgs):
    """One GGUF file."""

    kind: Literal["gguf"] = "gguf"
    quantization: str = Field(
        "Q8_0",
        description="As llama.cpp names it. F16, BF16, F32, Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0 need "
        "no compiler; "
        "Q4_K_M and the like need llama.cpp's own tools.",
        json_schema_extra={"enum": list(QUANTIZATIONS)},
    )
    imatrix: bool = Field(
        False,
        description="Weigh the weights by what the training texts use; needs llama.cpp's own "
        "tools.",
    )
    imatrix_rows: int = Field(
        500, ge=10, le=100_000, description="Training rows that the importance matrix is made of."
    )
    allow_fallback: bool = Field(
        False,
        description="Let llama.cpp store tensors that the blocks don't fit in a larger type, "
        "instead of refusing.",
    )

    adapter: bool = Field(
        False,
        description="Leave the fine-tune's adapter out of the weights: the base is converted, and "
        "it lies beside.",
    )

    @field_validator("quantization")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name.upper() not in QUANTIZATIONS:
            raise ValueError(
                f"llama.cpp has no quantization '{name}'; "
                f"{suggestion(name.upper(), list(QUANTIZATIONS))}"
            )
        return name.upper()

    @model_validator(mode="after")
    def _fits_imatrix(self) -> "GgufArgs":
        if self.imatrix and self.quantization in WHOLE:
            raise ValueError(
                f"an importance matrix changes nothing in {self.quantization}; leave `imatrix` out"
            )
        if QUANTIZATIONS[self.quantization].needs_imatrix and not self.imatrix:
            raise ValueError(f"{self.quantization} needs an importance matrix; set `imatrix: true`")
        return self

    def label(self) -> str:
        return f"gguf-{self.quantization}" + "-imatrix" * self.imatrix + "-adapter" * self.adapter

    @property
    def keeps_adapter(self) -> bool:
        return self.adapter

    @property
    def tools(self) -> list[str]:
        """llama.cpp's programs that are needed."""
        native = not QUANTIZATIONS[self.quantization].numpy or self.imatrix
        return ["llama-quantize"] * native + ["llama-imatrix"] * self.imatrix


class Gguf:
    """Makes `model.gguf` and, beside it, `tokenizer/` with everything that renders a prompt."""

    Args: ClassVar[type[OptimizerArgs]] = GgufArgs
    version: ClassVar[int] = 2
    format: ClassVar[Format] = "gguf"
    faithful: ClassVar[Mapping[str, str] | None] = {"quantization": "F16"}
    lock: ClassVar[Path | None] = LOCK

    def check(
        self, model: Path, args: GgufArgs, workspace: Workspace, *, dry: bool = False
    ) -> None:
        doing, cache = f"making {args.label()}", workspace.settings.cache
        quantization = QUANTIZATIONS[args.quantization]
        # A matrix that blocks of 32 do not fit becomes F16, see gguf_scripts/requantize.py.
        if quantization.block > 32 and not args.allow_fallback:
            checks.check_widths(model, quantization, doing)
        checks.check_tools(args.tools, cache, doing)
        checks.check_room(model, quantization, workspace.store, doing)
        # Needs llama.cpp's sources, 75 MB, and the converter's environment: a plan fetches neither.
        fetched = llama_cpp_native.is_fetched(cache)
        if fetched or not dry:
            checks.check_architecture(model, cache, doing)
        if not dry or (fetched and locate(LOCK, cache)[1]):
            check_conversion(model, workspace, doing)

    def optimize(
        self, model: Artifact, data: Artifact, args: GgufArgs, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        doing, cache = f"making {args.label()}", workspace.settings.cache
        weights, adapter = model, None
        if args.adapter:
            weights, adapter = base_and_adapter(model, workspace, doing)
        base = convert(weights, workspace)
        source, target = base.artifact.path / "model.gguf", out / "model.gguf"
        facts = dict(base.facts)
        if args.tools:
            matrix = None
            if args.imatrix:
                matrix = importance_matrix(base, weights, data, args.imatrix_rows, workspace)
            quantization = args.quantization
            facts |= quantize_natively(source, target, quantization, matrix, workspace, doing)
        else:
            facts |= requantize(source, target, args.quantization, cache, doing)
        if adapter:
            convert_adapter(adapter, weights, out, cache)
            facts["adapter"] = adapter.digest
        copy_all_but_weights(weights.path, out / "tokenizer")
        header = read_header(target)
        facts |= {
            "quantization": args.quantization,
            "bits_per_weight": f"{header.bits_per_weight:.3f}",
            "tensors": header.summary(),
        }
        return facts | _prove(header, weights, data, args, out, workspace)


def _prove(
    header: Header, model: Artifact, data: Artifact, args: GgufArgs, out: Path, workspace: Workspace
) -> dict[str, str]:
    """Serve it, have it answer, and compare how it cuts texts. Raises BadInput or Unavailable."""
    plugin = engine_class("llama_cpp")
    # Half of the cores: as many threads as a busy machine has cores wait for each other in spinning
    # barriers, and are 3 to 10 times slower.
    options = {"kind": plugin.name, "parallel": 1, "threads": max(1, cores() // 2)}
    engine = plugin(plugin.Args.model_validate(options))
    rows, doing = proof.sample(data), f"proving {args.label()}"
    inputs = {
        "tokenizer": header.tokenizer_digest(),
        "model": model,
        "data": data,
        "engine": hashlib.sha256(engine.lock().read_bytes()).hexdigest(),
        "most": proof.MOST_ROWS,
    }
    with proof.served(out, engine, workspace.settings.cache) as running:

        def compute() -> proof.TokenizationProof:
            logger.info("%s: comparing the tokens of %d rows", doing, len(rows))
            return proof.compare(engine, running.url, model.path, rows, doing)

        # Variants of one model carry the same tokenizer, byte by byte: one proof holds for all.
        tokenization = workspace.stages.run(
            "optimize.gguf_tokens", BASE_VERSION, proof.TokenizationProof, inputs, compute
        ).value
        proof.have_it_answer(running, rows, doing)
    return {**tokenization.facts(), "engine": proof.release(engine, "xllamacpp")}
