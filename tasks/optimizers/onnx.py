"""ONNX for ONNX Runtime: built and quantized by onnxruntime-genai's own model builder, and proved.

A variant counts only if every matrix in its graph has the precision that was asked for (a quantizer
that skips one says nothing), the engine loads it and answers, and cuts every text of the data into
the tokens that the model was trained on.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, model_validator

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.disk import require_room
from weighbridge.core.environments import ensure, locate
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.plugins import suggestion
from weighbridge.core.processes import Finished, run
from weighbridge.core.progress import track
from weighbridge.core.safetensors_header import tensors
from weighbridge.core.workspace import Workspace
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.base import engine_class
from weighbridge.tasks.model_files import copy_all_but_weights, read_object
from weighbridge.tasks.optimizers import gguf_proof as proof
from weighbridge.tasks.optimizers.base import OptimizerArgs

SCRIPT: Final = Path(__file__).parent / "onnx_scripts" / "build.py"
FLOATS: Final = frozenset({"F32", "F16", "BF16"})
INSTEAD: Final = "serve it with `kind: none` on vLLM instead"
WHOLE: Final = {"fp32": "FLOAT", "fp16": "FLOAT16"}
"""Precisions that are number types, as ONNX names those."""
BITS: Final = {"int4": 4, "int8": 8}

logger = logging.getLogger("weighbridge.onnx")


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
        description="In int4 and int8, what products are computed in: 4 int8, 3 bf16, 2 fp16, 1 fp32.",
    )
    algo_config: Literal["default", "rtn", "k_quant"] = Field(
        "default", description="How int4 and int8 are rounded."
    )

    @model_validator(mode="after")
    def _fits(self) -> "OnnxArgs":
        given = sorted(self.model_fields_set & {"block_size", "accuracy_level", "algo_config"})
        if self.precision in WHOLE and given:
            raise ValueError(
                f"{' and '.join(given)} change nothing in {self.precision}; leave them out"
            )
        return self

    def label(self) -> str:
        own = {"block_size": "b", "accuracy_level": "a", "algo_config": ""}
        changed = self.model_dump(include=set(own), exclude_defaults=True)
        return "-".join(
            ["onnx", self.precision, *(f"{own[name]}{value}" for name, value in changed.items())]
        )

    def options(self) -> list[str]:
        """The builder's `--extra_options`."""
        if self.precision in WHOLE:
            return []
        return [
            f"{name}={getattr(self, name)}"
            for name in ("block_size", "accuracy_level", "algo_config")
        ]

    @property
    def provider(self) -> str:
        """What the graph is made for. The one of 16 bits for CUDA runs on a CPU too, the builder's
        other one does not extend its cache in place.
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
    version: ClassVar[int] = 1
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
        needed = int(sum(_count(shape) for _, _, shape in tensors(model)) * args.bits / 8)
        require_room(needed, "the result", workspace.store.root, doing)
        if not dry or locate(_lock(), workspace.settings.cache)[1]:
            _check_architecture(model, workspace.settings.cache, doing)

    def optimize(
        self, model: Artifact, data: Artifact, args: OnnxArgs, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        report = _build(model, args, out, workspace)
        _check_claims(report, args)
        copy_all_but_weights(model.path, out / "tokenizer")
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
    """Raises BadInput for a model that the builder does not know, or that is more than a language
    model.
    """
    named = (read_object("config.json", model / "config.json").get("architectures") or ["(none)"])[
        0
    ]
    known = known_architectures(cache)
    if named not in known:
        wrong = f"{_builder()}'s builder makes no language model of the architecture {named}"
        raise BadInput(doing, f"{wrong}; {suggestion(named, known)}", INSTEAD)


def known_architectures(cache: Path) -> list[str]:
    """Every language model that the builder names, read from its source without running it."""
    environment = ensure(_lock(), cache)
    (source,) = environment.path.glob(
        "lib/python*/site-packages/onnxruntime_genai/models/builder.py"
    )
    found = set(
        re.findall(
            r'config\.architectures\[0\] == "(\w+ForCausalLM)"', source.read_text(encoding="utf-8")
        )
    )
    if not found:
        raise AssertionError("the builder lists no architectures where it used to")
    return sorted(found)


def _build(model: Artifact, args: OnnxArgs, out: Path, workspace: Workspace) -> dict[str, Any]:
    """Run the builder; returns what its graph is made of."""
    doing, python = f"making {args.label()}", ensure(_lock(), workspace.settings.cache).python
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    with workspace.store.scratch() as scratch, track(doing, None):
        # The same name wherever the store lies: the graph may tell it.
        (scratch / "model").symlink_to(model.path)
        # -P: the folder of our script is no place to import from.
        words: list[str | Path] = [
            python,
            "-P",
            SCRIPT,
            "model",
            out,
            args.precision,
            args.provider,
        ]
        words += [scratch / "cache", scratch / "report", *args.options()]
        done = run("onnxruntime-genai's builder", words, env=offline, cwd=scratch)
        _require(done, doing)
        report: dict[str, Any] = json.loads((scratch / "report").read_text())
    return report


def _require(done: Finished, doing: str) -> None:
    """Translate a failed program. Raises BadInput for the model's own faults, Unavailable for the
    machine's.
    """
    if done.status == 0:
        return
    if done.status < 0:
        wrong = f"it was ended by signal {-done.status}"
        raise Unavailable(
            doing, wrong, "if memory ran out, close other programs or use a larger machine"
        )
    if re.search(r"No space left on device|Disk quota exceeded", done.output):
        raise Unavailable(doing, "the disk is full", "make room, then run again")
    errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", done.output, re.MULTILINE)
    wrong = " ".join((errors[-1] if errors else done.tail()).split())[:400]
    raise BadInput(doing, f"onnxruntime-genai's builder cannot handle this model: {wrong}", INSTEAD)


def _check_claims(report: dict[str, Any], args: OnnxArgs) -> None:
    """Raises BadInput where the graph is not what was asked for."""
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
    """Load it on its engine, let it answer, and compare how it cuts texts; raises BadInput or
    Unavailable.
    """
    plugin = engine_class("onnx")
    engine = plugin(plugin.Args(kind="onnx"))
    rows, doing, log = (
        proof.sample(data),
        f"proving {args.label()}",
        out.with_name(f"{out.name}.engine.log"),
    )
    try:
        with serve(out, engine.args, workspace.settings.cache, log) as running:
            proved = proof.compare(engine, running.url, model.path, rows, doing)
            answer = proof.answers(running.url, rows)
    finally:
        log.unlink(missing_ok=True)
    logger.info("%s: loaded in %.1f s, answers %r", doing, running.load_seconds, answer)
    version = _pinned(engine.lock(), "onnxruntime")
    return {
        "rows_checked": str(proved.rows),
        "tokens_checked": str(proved.tokens),
        "engine": f"{engine.name} ({version})",
    }


def _builder() -> str:
    return _pinned(_lock(), "onnxruntime-genai")


def _pinned(lock: Path, package: str) -> str:
    """A package and the version that a lock pins."""
    found = re.search(rf"^{package}==([\w.]+)", lock.read_text(), re.MULTILINE)
    return f"{package} {found[1]}" if found else package


def _count(shape: list[int]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product


def _lock() -> Path:
    return Path(__file__).with_suffix(".lock")
