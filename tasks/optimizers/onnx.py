"""ONNX for ONNX Runtime: built and quantized by onnxruntime-genai's own model builder, and proved.

A variant counts only if every matrix in its graph has the precision that was asked for (a quantizer
that skips one says nothing), the engine loads it and answers, and cuts every text of the data into
the tokens that the model was trained on.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.disk import require_room
from weighbridge.core.environments import ensure, locate
from weighbridge.core.errors import BadInput
from weighbridge.core.plugins import suggestion
from weighbridge.core.safetensors_header import tensors
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import engine_class
from weighbridge.tasks.answer_end import write_stops
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.model_files import copy_all_but_weights, read_object
from weighbridge.tasks.optimizers import proof
from weighbridge.tasks.optimizers.base import OptimizerArgs
from weighbridge.tasks.optimizers.scripts import OFFLINE, OptimizerProgram, script

SCRIPT: Final = Path(__file__).parent / "onnx_scripts" / "build.py"
FLOATS: Final = frozenset({"F32", "F16", "BF16"})
INSTEAD: Final = "serve it with `kind: none` on vLLM instead"
BUILDER: Final = OptimizerProgram(
    "onnxruntime-genai's builder", "cannot handle this model", INSTEAD
)
WHOLE: Final = {"fp32": "FLOAT", "fp16": "FLOAT16"}
"""Precisions that are number types, as ONNX names those."""
BITS: Final = {"int4": 4, "int8": 8}


class OnnxArgs(OptimizerArgs):
    """One ONNX graph; options are the builder's own."""

    kind: Literal["onnx"] = "onnx"
    precision: Literal["int4", "int8", "fp16", "fp32"] = Field(
        "int4", description="Of the matrices."
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="Weights that share a scale, in int4 and int8."
    )
    accuracy_level: Literal[1, 2, 3, 4] = Field(
        4,
        description="In int4 and int8, what products are computed in: 4 int8, 3 bf16, 2 fp16, 1 "
        "fp32.",
    )
    algo_config: Literal["default", "rtn", "k_quant"] = Field(
        "default", description="How int4 and int8 are rounded."
    )

    @model_validator(mode="after")
    def _fits(self) -> "OnnxArgs":
        options = sorted(self.model_fields_set & {"block_size", "accuracy_level", "algo_config"})
        if self.precision in WHOLE and options:
            raise ValueError(
                f"{' and '.join(options)} change nothing in {self.precision}; leave them out"
            )
        return self

    def label(self) -> str:
        own = {"block_size": "b", "accuracy_level": "a", "algo_config": ""}
        changed = self.model_dump(include=set(own), exclude_defaults=True)
        return "-".join(
            ["onnx", self.precision, *(f"{own[name]}{value}" for name, value in changed.items())]
        )

    def options(self) -> list[str]:
        """Return the builder's `--extra_options`."""
        if self.precision in WHOLE:
            return []
        return [
            f"{name}={getattr(self, name)}"
            for name in ("block_size", "accuracy_level", "algo_config")
        ]

    @property
    def provider(self) -> str:
        """Execution provider that the graph is made for. The fp16 graph for CUDA runs on a CPU as
        well; the builder's fp16 graph for the CPU does not extend its cache in place.
        """
        return "cuda" if self.precision == "fp16" else "cpu"

    @property
    def bits(self) -> float:
        """About how many bits a weight takes."""
        return {"fp32": 32, "fp16": 16}.get(self.precision) or BITS.get(
            self.precision, 0
        ) + 32 / self.block_size


class Onnx:
    """Makes `model.onnx` with its data, `genai_config.json` and, beside them, `tokenizer/`."""

    Args: ClassVar[type[OptimizerArgs]] = OnnxArgs
    version: ClassVar[int] = 2
    format: ClassVar[Format] = "onnx"
    faithful: ClassVar[Mapping[str, str] | None] = {"precision": "fp32"}
    lock: ClassVar[Path | None] = Path(__file__).with_suffix(".lock")

    def check(
        self, model: Path, args: OnnxArgs, workspace: Workspace, *, dry: bool = False
    ) -> None:
        doing = f"making {args.label()}"
        _check_weights(model, doing)
        if not (model / "tokenizer.json").exists():
            wrong = "there is no tokenizer.json, and the engine reads no other form of tokenizer"
            raise BadInput(doing, wrong, "save the tokenizer with a current transformers first")
        needed = int(sum(math.prod(shape) for _, _, shape in tensors(model)) * args.bits / 8)
        require_room(needed, "the result", workspace.store.root, doing)
        # Needs the builder's environment: a plan does not build it.
        if not dry or locate(_lock(), workspace.settings.cache)[1]:
            _check_architecture(model, workspace.settings.cache, doing)

    def optimize(
        self, model: Artifact, data: Artifact, args: OnnxArgs, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        report = _build(model, args, out, workspace)
        _check_claims(report, args)
        copy_all_but_weights(model.path, out / "tokenizer")
        write_stops(out / "tokenizer", load_tokenizer(out / "tokenizer"))
        facts = {
            "precision": args.precision,
            "bits_per_weight": f"{report['bits_per_weight']:.3f}",
            "tensors": ", ".join(
                f"{count} {kind}" for kind, count in sorted(report["types"].items())
            ),
            "builder": _builder(),
        }
        return facts | _prove(model, data, args, out, workspace)


def _check_weights(model: Path, doing: str) -> None:
    config = read_object("config.json", model / "config.json")
    if config.get("quantization_config"):
        wrong = "the weights are quantized already, and what was lost does not come back"
        raise BadInput(doing, wrong, "start from the unquantized model")
    kinds = {kind for _, kind, _ in tensors(model)}
    if not kinds or kinds - FLOATS:
        wrong = f"the weights are {', '.join(sorted(kinds)) or 'missing'}"
        raise BadInput(
            doing,
            f"{wrong}, not floating-point numbers in *.safetensors",
            "start from the original model",
        )


def _check_architecture(model: Path, cache: Path, doing: str) -> None:
    """Raise BadInput for a model that the builder does not know or that is no language model."""
    config = read_object("config.json", model / "config.json")
    declared = (config.get("architectures") or ["(none)"])[0]
    architectures = known_architectures(cache)
    if declared not in architectures:
        wrong = f"{_builder()}'s builder makes no language model of the architecture {declared}"
        raise BadInput(doing, f"{wrong}; {suggestion(declared, architectures)}", INSTEAD)


def known_architectures(cache: Path) -> list[str]:
    """Return every language model that the builder names, from its source, without running it."""
    environment = ensure(_lock(), cache)
    (source,) = environment.path.glob(
        "lib/python*/site-packages/onnxruntime_genai/models/builder.py"
    )
    pattern = r'config\.architectures\[0\] == "(\w+ForCausalLM)"'
    architectures = set(re.findall(pattern, source.read_text(encoding="utf-8")))
    if not architectures:
        raise AssertionError("the builder lists no architectures where it used to")
    return sorted(architectures)


def _build(model: Artifact, args: OnnxArgs, out: Path, workspace: Workspace) -> dict[str, Any]:
    """Run the builder; return what its graph is made of."""
    with workspace.store.scratch() as scratch:
        # The same name wherever the store lies: the graph may tell it.
        (scratch / "model").symlink_to(model.path)
        command = script(SCRIPT, _lock(), workspace.settings.cache)
        command += ["model", out, args.precision, args.provider]
        command += [scratch / "cache", scratch / "report", *args.options()]
        BUILDER.run(command, f"making {args.label()}", env=OFFLINE, cwd=scratch)
        report: dict[str, Any] = json.loads((scratch / "report").read_text())
    return report


def _check_claims(report: dict[str, Any], args: OnnxArgs) -> None:
    """Raise BadInput where the graph is not what was asked for."""
    doing, plain = f"making {args.label()}", report["plain"]
    if args.precision in WHOLE:
        others = sorted(set(report["types"]) - {WHOLE[args.precision]})
        if others or report["quantized"]:
            raise BadInput(
                doing, f"the builder left matrices in {', '.join(others) or 'fewer bits'}", INSTEAD
            )
        return
    if plain or not report["quantized"]:
        shown = ", ".join(plain[:3]) + (f" and {len(plain) - 3} more" if len(plain) > 3 else "")
        raise BadInput(
            doing,
            f"the builder did not quantize {shown or 'anything'}, and did not say so",
            INSTEAD,
        )
    wider = sorted(bits for bits in report["quantized"] if int(bits) != BITS[args.precision])
    if wider and args.algo_config != "k_quant":
        raise BadInput(
            doing, f"the builder quantized some matrices to {', '.join(wider)} bits", INSTEAD
        )


def _prove(
    model: Artifact, data: Artifact, args: OnnxArgs, out: Path, workspace: Workspace
) -> dict[str, str]:
    """Serve it, have it answer, and compare how it cuts texts. Raises BadInput or Unavailable."""
    plugin = engine_class("onnx")
    engine = plugin(plugin.Args(kind="onnx"))
    rows, doing = proof.sample(data), f"proving {args.label()}"
    with proof.served(out, engine, workspace.settings.cache) as running:
        tokenization = proof.compare(engine, running.url, model.path, rows, doing)
        proof.have_it_answer(running, rows, doing)
    return {**tokenization.facts(), "engine": proof.release(engine, "onnxruntime")}


def _builder() -> str:
    return proof.pinned(_lock(), "onnxruntime-genai") or "onnxruntime-genai"


def _lock() -> Path:
    return Path(__file__).with_suffix(".lock")
