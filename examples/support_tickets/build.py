"""Make the whole folder: data, tokenizer, model, manifest. It appears complete or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Final

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from . import dataset, logger, manifest
from .corpus import documents
from .pretrain import CONTEXT, Plan, pretrain
from .tokenizer import train

TOKENIZER_DOCUMENTS: Final = 4000


def build(out: Path, seed: int, plan: Plan | None = None) -> None:
    """Make `out`, which must not exist: `base/`, `data/` and `MANIFEST.json`.

    Everything is written beside `out` first and renamed at the end; a failure leaves nothing
    behind.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _fill(part, seed, plan or Plan())
        part.chmod(0o755)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part)
        raise


def _fill(folder: Path, seed: int, plan: Plan) -> None:
    start, cpu_start = time.monotonic(), time.process_time()
    drawn = dataset.splits(seed)
    dataset.write(folder / "data", drawn)
    tokenizer = train(islice(documents(seed, drawn.evaluation_texts), TOKENIZER_DOCUMENTS), CONTEXT)
    corpus = documents(seed, drawn.evaluation_texts)
    model, probe = pretrain(tokenizer, corpus, drawn.validation, seed, plan)
    _save(folder / "base", model, tokenizer)
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers")}
    manifest.write(folder, {"seed": seed, "probe": round(probe, 4), **versions})
    wall, cpu = time.monotonic() - start, time.process_time() - cpu_start
    logger.info("made in %.0f s (%.0f s of CPU), probe %.2f", wall, cpu, probe)


def _save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    # float32: at 10 MB there is nothing to save, every CPU runs it, and merging an adapter adds no
    # rounding.
    model.save_pretrained(folder)
    # safetensors writes for the owner alone, yet an engine may run as somebody else.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    # transformers says "no BOS" in tokenizer.json alone; llama.cpp's converter asks this file, and
    # would add one.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**config, "add_bos_token": False}, indent=2) + "\n", encoding="utf-8"
    )
