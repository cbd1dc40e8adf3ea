"""Weights to GGUF and to other precisions of it, with llama.cpp's own programs or numpy."""

import hashlib
import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput
from weighbridge.core.machine import cores
from weighbridge.core.safetensors_header import tensors
from weighbridge.core.stage_cache import fingerprint
from weighbridge.core.store import sha256_of
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engines.llama_cpp import SPINS
from weighbridge.tasks.answer_end import STOPS_OF_LLAMA_CPP, tokens_that_stop
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.optimizers import gguf_checks as checks
from weighbridge.tasks.optimizers import proof
from weighbridge.tasks.optimizers.gguf_quantizations import QUANTIZATIONS
from weighbridge.tasks.optimizers.scripts import OFFLINE, OptimizerProgram, script, steps_done

LOCK: Final = Path(__file__).with_name("gguf.lock")
BASE_VERSION: Final = 3
"""Bumped when the lossless conversion gives other bytes."""
SCRIPTS: Final = Path(__file__).parent / "gguf_scripts"
PROGRAM: Final = OptimizerProgram(
    "llama.cpp's tool", "cannot handle this model", "or serve it with `kind: none` on vLLM"
)
LONGEST_CHUNK: Final = 512
SHORTEST_CHUNK: Final = 32
"""Tokens that llama-imatrix reads together; it takes two chunks at least."""
UPDATES: Final = 50
"""How often llama-imatrix tells how far it is."""

logger = logging.getLogger(__name__)


class LosslessConversion(BaseModel):
    """A model as one GGUF file, with the weights it had."""

    artifact: Artifact
    facts: dict[str, str]


class ImportanceMatrix(BaseModel):
    """How much each weight counts on training texts."""

    artifact: Artifact
    rows: int


def convert(model: Artifact, workspace: Workspace) -> LosslessConversion:
    """Convert a model without loss; once for all its variants."""
    environment = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    inputs = {"model": model, "sources": llama_cpp_native.SHA256, "environment": environment}

    def compute() -> LosslessConversion:
        with workspace.store.scratch() as scratch:
            facts = _convert(model, scratch / "out", workspace.settings.cache)
            artifact = workspace.store.add(scratch / "out", "gguf", {"uri": f"gguf:{model.digest}"})
            return LosslessConversion(artifact=artifact, facts=facts)

    return workspace.stages.run(
        "optimize.gguf_base", BASE_VERSION, LosslessConversion, inputs, compute
    ).value


def check_conversion(model: Path, workspace: Workspace, doing: str) -> None:
    """Have the converter go through a model without converting a weight: its architecture, tensors
    and vocabulary; once for models that differ in their weights alone.

    Raises:
        BadInput: the converter cannot take it.
    """
    files = [path for path in model.iterdir() if path.is_file() and path.suffix != ".safetensors"]
    inputs = {
        "files": {path.name: sha256_of(path) for path in files},
        "tensors": fingerprint(sorted(tensors(model))),
        "sources": llama_cpp_native.SHA256,
        "environment": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
    }

    def compute() -> str:
        with workspace.store.scratch() as scratch:
            (out := scratch / "out").mkdir()
            _run_converter(model, out, "checked", workspace.settings.cache, doing, "--dry-run")
        return "convertible"

    workspace.checks.run("gguf", BASE_VERSION, str, inputs, compute)


def _convert(model: Artifact, out: Path, cache: Path) -> dict[str, str]:
    number_type, doing = checks.base_type(model.path), "converting the model to GGUF"
    out.mkdir()
    logger.info("%s (%s, without loss)", doing, number_type)
    report = _run_converter(model.path, out, _name(model), cache, doing)
    release = f"llama-cpp-python {llama_cpp_native.VERSION} (llama.cpp {llama_cpp_native.COMMIT})"
    return {
        **json.loads(report.read_text()),
        "converter": release,
        "converted_through": number_type,
    }


def _run_converter(
    model: Path, out: Path, name: str, cache: Path, doing: str, *options: str
) -> Path:
    """Run llama.cpp's converter into a folder; return its report, which lies beside that."""
    report = out.with_name("report")
    # The converter reads meaning into the folder's name: it must not depend on the store.
    (folder := out.with_name("model")).symlink_to(model)
    command = script(SCRIPTS / "convert.py", LOCK, cache)
    command += [llama_cpp_native.source(cache), folder, out / "model.gguf"]
    ends = ",".join(map(str, ends_of(model)))
    command += [checks.base_type(model).lower(), name, report, ends, *options]
    PROGRAM.run(command, doing, report=report, env=OFFLINE, cwd=out.parent)
    return report


def ends_of(model: Path) -> list[int]:
    """Return the tokens to name in the file: the end of text, the end of a turn, and any other at
    which llama.cpp would not stop by its spelling.
    """
    tokenizer = load_tokenizer(model)
    stops = tokens_that_stop(model, tokenizer)
    end = stops[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    others = [
        token
        for token in stops[1:]
        if tokenizer.convert_ids_to_tokens(token) not in STOPS_OF_LLAMA_CPP
    ]
    return list(dict.fromkeys([end, stops[0], *others]))


def convert_adapter(adapter: Artifact, base: Artifact, out: Path, cache: Path) -> None:
    """Convert a LoRA adapter to `adapter.gguf`; of the base, only the configuration is read."""
    command: list[str | Path] = [ensure(LOCK, cache).python, "convert_lora_to_gguf.py"]
    command += ["--base", base.path, "--outtype", "f32"]
    command += ["--outfile", out / "adapter.gguf", adapter.path]
    sources = llama_cpp_native.source(cache)
    PROGRAM.run(command, "converting the adapter to GGUF", env=OFFLINE, cwd=sources)


def requantize(
    source: Path, target: Path, quantization: str, cache: Path, doing: str
) -> dict[str, str]:
    """Write another precision in numpy."""
    report = target.with_name("report")
    file_type = str(QUANTIZATIONS[quantization].file_type)
    command = script(SCRIPTS / "requantize.py", LOCK, cache)
    command += [llama_cpp_native.source(cache), source, target, quantization, file_type, report]
    PROGRAM.run(command, doing, report=report, part_done=steps_done)
    report.unlink(missing_ok=True)
    return {"quantizer": "gguf (numpy)"}


def quantize_natively(
    source: Path,
    target: Path,
    quantization: str,
    matrix: ImportanceMatrix | None,
    workspace: Workspace,
    doing: str,
) -> dict[str, str]:
    """Write another precision with llama-quantize, under an importance matrix if there is one."""
    program = _tool("llama-quantize", workspace.settings.cache, doing)
    facts = {"quantizer": llama_cpp_native.tool_version(program)}
    with workspace.store.scratch() as scratch:
        # The tool writes file names into the result: they must say nothing about this machine.
        (scratch / "base.gguf").symlink_to(source)
        command: list[str | Path] = [program]
        if matrix is not None:
            (scratch / "imatrix.gguf").symlink_to(matrix.artifact.path / "imatrix.gguf")
            command += ["--imatrix", "imatrix.gguf"]
            facts["imatrix_rows"] = str(matrix.rows)
        command += ["base.gguf", "model.gguf", quantization, str(cores())]
        PROGRAM.run(command, doing, cwd=scratch, part_done=steps_done)
        shutil.move(scratch / "model.gguf", target)
    return facts


def importance_matrix(
    base: LosslessConversion, model: Artifact, data: Artifact, rows: int, workspace: Workspace
) -> ImportanceMatrix:
    """Measure importance on training texts; once for all variants that want it."""
    inputs = {"base": base.artifact, "data": data, "rows": rows, "sources": llama_cpp_native.SHA256}

    def compute() -> ImportanceMatrix:
        with workspace.store.scratch() as scratch:
            (scratch / "base.gguf").symlink_to(base.artifact.path / "model.gguf")
            count = _calibrate(model, data, rows, scratch, workspace.settings.cache)
            out = scratch / "out"
            out.mkdir()
            (scratch / "imatrix.gguf").rename(out / "imatrix.gguf")
            return ImportanceMatrix(artifact=workspace.store.add(out, "gguf"), rows=count)

    return workspace.stages.run(
        "optimize.gguf_imatrix", BASE_VERSION, ImportanceMatrix, inputs, compute
    ).value


def _calibrate(model: Artifact, data: Artifact, most_rows: int, scratch: Path, cache: Path) -> int:
    """Have llama-imatrix read training texts in `scratch`; return the number of rows."""
    doing = "making an importance matrix"
    tokenizer, rows = load_tokenizer(model.path), read_rows(data, "train")[:most_rows]
    text = "\n".join(proof.text_of(tokenizer, row) for row in rows)
    (scratch / "calibration.txt").write_text(text, encoding="utf-8")
    # verbose=False: transformers would warn that the text is longer than the model's context.
    tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    chunk = LONGEST_CHUNK
    while 2 * chunk > tokens and chunk > SHORTEST_CHUNK:
        chunk //= 2
    if 2 * chunk > tokens:
        wrong = f"the training texts have {tokens} tokens, and it takes {2 * chunk}"
        raise BadInput(doing, wrong, "give more data, or leave `imatrix` out")
    command: list[str | Path] = [_tool("llama-imatrix", cache, doing)]
    command += ["-m", "base.gguf", "-f", "calibration.txt", "-o", "imatrix.gguf"]
    chunks = tokens // chunk
    command += ["-c", str(chunk), "-b", str(chunk), "-t", str(cores())]
    # It tells of its progress only where it writes what it has so far.
    command += ["--output-frequency", str(max(1, chunks // UPDATES))]
    # The texts hold the template's special tokens as they are written; perplexity is not needed.
    command += ["--parse-special", "--no-ppl"]
    logger.info("%s of %d rows, %d tokens", doing, len(rows), tokens)
    # Threads that wait for each other sleep soon: else one for every core is slower than one alone
    # where the machine has other work.
    env = {"GOMP_SPINCOUNT": str(SPINS)}
    PROGRAM.run(command, doing, cwd=scratch, env=env, part_done=partial(chunks_done, chunks=chunks))
    return len(rows)


def chunks_done(line: str, chunks: int) -> float | None:
    """Return the part of an importance matrix that a line of llama-imatrix says is done."""
    stored = re.search(r"stored collected data after (\d+) chunks", line)
    return int(stored[1]) / chunks if stored else None


def _tool(name: str, cache: Path, doing: str) -> Path:
    checks.check_tools([name], cache, doing)
    program = llama_cpp_native.tool(name, cache)
    assert program is not None
    return program


def _name(model: Artifact) -> str:
    """Return the model's name inside the file; the same for the same weights wherever they lie."""
    return f"weighbridge-{model.short}"
