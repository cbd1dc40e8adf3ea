"""GGUF for llama.cpp: converted by its own converter, quantized in numpy or by its own tools, and
proved.

The weights are converted once, without loss, and every variant is made from that. A variant counts
only if the engine loads it, answers, and cuts every text of the data into the tokens that the model
was trained on.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.gguf_header import Header, read_header
from weighbridge.core.machine import cores
from weighbridge.core.plugins import suggestion
from weighbridge.core.processes import Finished, run
from weighbridge.core.progress import track
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.base import Engine, engine_class
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.model_files import copy_all_but_weights
from weighbridge.tasks.optimizers import gguf_checks as checks
from weighbridge.tasks.optimizers import gguf_proof as proof
from weighbridge.tasks.optimizers.base import OptimizerArgs
from weighbridge.tasks.optimizers.gguf_quantizations import QUANTIZATIONS, WHOLE
from weighbridge.tasks.optimizers.lineage import base_and_adapter

BASE_VERSION = 1
"""Bumped when the lossless conversion gives other bytes."""
SCRIPTS = Path(__file__).parent / "gguf_scripts"
REFUSED = 65
"""Exit status by which our scripts say that their report is a reason, for a person."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
"""What a converter of llama.cpp's runs under."""
CHUNK = 512
"""Tokens that llama-imatrix reads together."""

logger = logging.getLogger("weighbridge.gguf")


class GgufArgs(OptimizerArgs):
    """One GGUF file."""

    kind: Literal["gguf"] = "gguf"
    quantization: str = Field(
        "Q8_0",
        description="As llama.cpp names it. F16, BF16, F32, Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0 need no compiler; "
        "Q4_K_M and the like need llama.cpp's own tools.",
        json_schema_extra={"enum": list(QUANTIZATIONS)},
    )
    imatrix: bool = Field(
        False,
        description="Weigh the weights by what the training texts use; needs llama.cpp's own tools.",
    )
    imatrix_rows: int = Field(
        500, ge=10, le=100_000, description="Training rows that the importance matrix is made of."
    )
    allow_fallback: bool = Field(
        False,
        description="Let llama.cpp store tensors that the blocks don't fit in a larger type, instead of refusing.",
    )

    adapter: bool = Field(
        False,
        description="Leave the fine-tune's adapter out of the weights: the base is converted, and it lies beside.",
    )

    @field_validator("quantization")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name.upper() not in QUANTIZATIONS:
            raise ValueError(
                f"llama.cpp has no quantization '{name}'; {suggestion(name.upper(), list(QUANTIZATIONS))}"
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
    def tools(self) -> list[str]:
        """llama.cpp's programs that are needed."""
        native = not QUANTIZATIONS[self.quantization].numpy or self.imatrix
        return ["llama-quantize"] * native + ["llama-imatrix"] * self.imatrix


class _Base(BaseModel):
    """The lossless conversion."""

    artifact: Artifact
    facts: dict[str, str]


class _Matrix(BaseModel):
    """An importance matrix."""

    artifact: Artifact
    rows: int


class Gguf:
    """Makes `model.gguf` and, beside it, `tokenizer/` with everything that renders a prompt."""

    Args: ClassVar[type[OptimizerArgs]] = GgufArgs
    version: ClassVar[int] = 1
    format: ClassVar[Format] = "gguf"
    faithful: ClassVar[Mapping[str, str] | None] = {"quantization": "F16"}
    lock: ClassVar[Path | None] = Path(__file__).with_suffix(".lock")

    def check(
        self, model: Path, args: GgufArgs, workspace: Workspace, *, dry: bool = False
    ) -> None:
        doing, cache = f"making {args.label()}", workspace.settings.cache
        quantization = QUANTIZATIONS[args.quantization]
        if quantization.block > 32 and not args.allow_fallback:
            checks.check_widths(model, quantization, doing)
        checks.check_tools(args.tools, cache, doing)
        checks.check_room(model, quantization, workspace.store, doing)
        if llama_cpp_native.is_fetched(cache) or not dry:
            checks.check_architecture(model, cache, doing)

    def optimize(
        self, model: Artifact, data: Artifact, args: GgufArgs, out: Path, workspace: Workspace
    ) -> dict[str, str]:
        whole, adapter = model, None
        if args.adapter:
            whole, adapter = base_and_adapter(model, workspace, f"making {args.label()}")
        base = _base(whole, workspace)
        source, target = base.artifact.path / "model.gguf", out / "model.gguf"
        facts = dict(base.facts)
        if args.tools:
            facts |= _quantize_natively(source, target, base, data, whole, args, workspace)
        else:
            facts |= _quantize(source, target, args, workspace)
        if adapter:
            _convert_adapter(adapter, whole, out, workspace)
            facts["adapter"] = adapter.digest
        copy_all_but_weights(whole.path, out / "tokenizer")
        header = read_header(target)
        facts |= {
            "quantization": args.quantization,
            "bits_per_weight": f"{header.bits_per_weight:.3f}",
            "tensors": header.summary(),
        }
        return facts | _prove(header, whole, data, args, out, workspace)


def _base(model: Artifact, workspace: Workspace) -> _Base:
    """The lossless conversion of a model; made once for all its variants."""
    inputs = {"model": model, "sources": llama_cpp_native.SHA256, "environment": _digest(_lock())}

    def compute() -> _Base:
        with workspace.store.scratch() as scratch:
            facts = _convert(model, scratch / "out", workspace)
            artifact = workspace.store.add(scratch / "out", "gguf", {"uri": f"gguf:{model.digest}"})
            return _Base(artifact=artifact, facts=facts)

    return workspace.stages.run("optimize.gguf_base", BASE_VERSION, _Base, inputs, compute).value


def _convert(model: Artifact, out: Path, workspace: Workspace) -> dict[str, str]:
    """Run llama.cpp's converter."""
    cache = workspace.settings.cache
    sources, python = llama_cpp_native.source(cache), ensure(_lock(), cache).python
    kind, report, doing = (
        checks.base_type(model.path),
        out.parent / "report",
        "converting the model to GGUF",
    )
    out.mkdir()
    logger.info("%s (%s, without loss)", doing, kind)
    # -P: the folder of our script is no place to import from.
    script: list[str | Path] = [python, "-P", SCRIPTS / "convert.py"]
    # The converter reads meaning into the folder's name: let it be the same wherever the store
    # lies.
    (folder := out.parent / "model").symlink_to(model.path)
    script += [sources, folder, out / "model.gguf", kind.lower(), _name(model), report]
    with track(doing, None):
        done = run("llama.cpp's converter", script, env=OFFLINE, cwd=out.parent)
    _require(done, report, doing)
    return {
        **json.loads(report.read_text()),
        "converter": f"llama-cpp-python {llama_cpp_native.VERSION} (llama.cpp {llama_cpp_native.COMMIT})",
        "converted_through": kind,
    }


def _convert_adapter(adapter: Artifact, base: Artifact, out: Path, workspace: Workspace) -> None:
    """Run llama.cpp's converter of adapters; it reads the base's configuration alone."""
    cache, doing = workspace.settings.cache, "converting the adapter to GGUF"
    script: list[str | Path] = [ensure(_lock(), cache).python, "convert_lora_to_gguf.py"]
    script += [
        "--base",
        base.path,
        "--outtype",
        "f32",
        "--outfile",
        out / "adapter.gguf",
        adapter.path,
    ]
    with track(doing, None):
        done = run("llama.cpp's converter", script, env=OFFLINE, cwd=llama_cpp_native.source(cache))
    _require(done, None, doing)


def _quantize(source: Path, target: Path, args: GgufArgs, workspace: Workspace) -> dict[str, str]:
    """Write another precision in numpy."""
    cache, doing = workspace.settings.cache, f"making {args.label()}"
    sources, python, report = (
        llama_cpp_native.source(cache),
        ensure(_lock(), cache).python,
        target.with_name("report"),
    )
    file_type = str(QUANTIZATIONS[args.quantization].file_type)
    script: list[str | Path] = [python, SCRIPTS / "requantize.py"]
    script += [sources, source, target, args.quantization, file_type, report]
    with track(doing, 1) as update:
        _require(run("the quantizer", script, on_line=_steps(update)), report, doing)
    report.unlink(missing_ok=True)
    return {"quantizer": "gguf (numpy)"}


def _quantize_natively(
    source: Path,
    target: Path,
    base: _Base,
    data: Artifact,
    model: Artifact,
    args: GgufArgs,
    workspace: Workspace,
) -> dict[str, str]:
    """Write another precision with llama-quantize, under an importance matrix if asked."""
    doing, cache = f"making {args.label()}", workspace.settings.cache
    facts: dict[str, str] = {}
    with workspace.store.scratch() as scratch:
        # The tool writes the names of its files into the result: let them say nothing about this
        # machine.
        (scratch / "base.gguf").symlink_to(source)
        words: list[str | Path] = [_tool("llama-quantize", cache, doing)]
        facts["quantizer"] = llama_cpp_native.tool_version(Path(words[0]))
        if args.imatrix:
            matrix = _matrix(base, model, data, args, workspace)
            (scratch / "imatrix.gguf").symlink_to(matrix.artifact.path / "imatrix.gguf")
            words += ["--imatrix", "imatrix.gguf"]
            facts["imatrix_rows"] = str(matrix.rows)
        words += ["base.gguf", "model.gguf", args.quantization, str(cores())]
        with track(doing, 1) as update:
            _require(run("llama-quantize", words, cwd=scratch, on_line=_steps(update)), None, doing)
        shutil.move(scratch / "model.gguf", target)
    return facts


def _matrix(
    base: _Base, model: Artifact, data: Artifact, args: GgufArgs, workspace: Workspace
) -> _Matrix:
    """The importance matrix of a model on training texts; made once for all variants that want it."""
    inputs = {
        "base": base.artifact,
        "data": data,
        "rows": args.imatrix_rows,
        "sources": llama_cpp_native.SHA256,
    }

    def compute() -> _Matrix:
        with workspace.store.scratch() as scratch:
            rows = _calibrate(base, model, data, args, scratch, workspace.settings.cache)
            out = scratch / "out"
            out.mkdir()
            (scratch / "imatrix.gguf").rename(out / "imatrix.gguf")
            return _Matrix(artifact=workspace.store.add(out, "gguf"), rows=rows)

    return workspace.stages.run(
        "optimize.gguf_imatrix", BASE_VERSION, _Matrix, inputs, compute
    ).value


def _calibrate(
    base: _Base, model: Artifact, data: Artifact, args: GgufArgs, scratch: Path, cache: Path
) -> int:
    doing = "making an importance matrix"
    tokenizer, rows = load_tokenizer(model.path), read_rows(data, "train")[: args.imatrix_rows]
    text = "\n".join(proof.text_of(tokenizer, row) for row in rows)
    (scratch / "calibration.txt").write_text(text, encoding="utf-8")
    (scratch / "base.gguf").symlink_to(base.artifact.path / "model.gguf")
    tokens, chunk = (
        len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]),
        CHUNK,
    )
    while 2 * chunk > tokens and chunk > 32:
        chunk //= 2
    if 2 * chunk > tokens:
        wrong = f"the training texts have {tokens} tokens, and it takes {2 * chunk}"
        raise BadInput(doing, wrong, "give more data, or leave `imatrix` out")
    files: list[str | Path] = ["-m", "base.gguf", "-f", "calibration.txt", "-o", "imatrix.gguf"]
    options = [
        "-c",
        str(chunk),
        "-b",
        str(chunk),
        "-t",
        str(max(1, cores() - 1)),
        "--parse-special",
        "--no-ppl",
    ]
    logger.info("%s of %d rows, %d tokens", doing, len(rows), tokens)
    with track(doing, None):
        program = _tool("llama-imatrix", cache, doing)
        _require(run("llama-imatrix", [program, *files, *options], cwd=scratch), None, doing)
    return len(rows)


def _prove(
    header: Header, model: Artifact, data: Artifact, args: GgufArgs, out: Path, workspace: Workspace
) -> dict[str, str]:
    """Load it on its engine, let it answer, and compare how it cuts texts; raises BadInput or
    Unavailable.
    """
    plugin = engine_class("llama_cpp")
    options = {"kind": plugin.name, "parallel": 1, "threads": max(1, cores() // 2)}
    engine = plugin(plugin.Args.model_validate(options))
    lock = engine.lock()
    rows, doing, log = (
        proof.sample(data),
        f"proving {args.label()}",
        out.with_name(f"{out.name}.engine.log"),
    )
    inputs = {
        "tokenizer": header.tokenizer_digest(),
        "model": model,
        "data": data,
        "engine": _digest(lock),
        "most": proof.MOST_ROWS,
    }
    try:
        with serve(out, engine.args, workspace.settings.cache, log) as running:

            def compute() -> proof.TokenizationProof:
                logger.info("%s: comparing the tokens of %d rows", doing, len(rows))
                return proof.compare(engine, running.url, model.path, rows, doing)

            # Variants of one model carry the same tokenizer, byte by byte: the first proof is every
            # one's.
            proved = workspace.stages.run(
                "optimize.gguf_tokens", BASE_VERSION, proof.TokenizationProof, inputs, compute
            ).value
            answer = proof.answers(running.url, rows)
    finally:
        log.unlink(missing_ok=True)
    logger.info("%s: loaded in %.1f s, answers %r", doing, running.load_seconds, answer)
    return {
        "rows_checked": str(proved.rows),
        "tokens_checked": str(proved.tokens),
        "engine": _version(engine, lock),
    }


def _require(done: Finished, report: Path | None, doing: str) -> None:
    """Translate a failed program. Raises BadInput for the model's own faults, Unavailable for the
    machine's.
    """
    if done.status == 0:
        return
    if done.status == REFUSED and report is not None:
        raise BadInput(doing, report.read_text(), "or serve the model with `kind: none` on vLLM")
    if done.status < 0:
        wrong = f"it was ended by signal {-done.status}"
        raise Unavailable(
            doing, wrong, "if memory ran out, close other programs or use a larger machine"
        )
    if re.search(r"No space left on device|Disk quota exceeded", done.output):
        raise Unavailable(doing, "the disk is full", "make room, then run again")
    errors = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$|^.*\berror:? .*$", done.output, re.MULTILINE
    )
    wrong = " ".join((errors[-1] if errors else done.tail()).split())[:400]
    raise BadInput(
        doing,
        f"llama.cpp's tool cannot handle this model: {wrong}",
        "or serve it with `kind: none` on vLLM",
    )


def _steps(update: Callable[[float], None]) -> Callable[[str], None]:
    """Progress out of lines that begin with `[done/total]`."""

    def on_line(line: str) -> None:
        if found := re.match(r"\[\s*(\d+)/\s*(\d+)\]", line):
            update(int(found[1]) / int(found[2]))

    return on_line


def _version(engine: Engine, lock: Path) -> str:
    """The engine and the release of llama.cpp's wheel that its lock pins."""
    found = re.search(r"^(xllamacpp)==([\w.]+)", lock.read_text(), re.MULTILINE)
    return f"{engine.name} ({found[1]} {found[2]})" if found else engine.name


def _tool(name: str, cache: Path, doing: str) -> Path:
    checks.check_tools([name], cache, doing)
    program = llama_cpp_native.tool(name, cache)
    assert program is not None
    return program


def _name(model: Artifact) -> str:
    """What the file says it is; the same for the same weights wherever they lie."""
    return f"weighbridge-{model.short}"


def _lock() -> Path:
    return Path(__file__).with_suffix(".lock")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
