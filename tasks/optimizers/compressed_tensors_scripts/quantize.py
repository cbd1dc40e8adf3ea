"""Quantize a model with llm-compressor.

Runs in the environment of compressed_tensors, not in ours: `python -P quantize.py ORDER`, where
ORDER is a JSON file. What is written is taken at nobody's word: the caller reads the tensors.
"""

import json
import sys
from pathlib import Path
from typing import Any

REFUSED = 65
"""Exit status after which the report holds the reason for a person."""
FALLBACK = "round-to-nearest instead of GPTQ"
"""Words with which llm-compressor tells that it did otherwise than asked, and goes on."""


class Refusal(Exception):
    """The model cannot be quantized as asked; the text is for a person."""


def modifier(order: dict[str, Any]) -> Any:
    """Return what llm-compressor is to do."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    kind = GPTQModifier if order["algorithm"] == "gptq" else QuantizationModifier
    options: dict[str, Any] = {"ignore": order["ignore"]}
    # The preset W4A16 fixes groups of 128, so other sizes need it written out.
    if order["group_size"]:
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "dynamic": False,
        }
        weights["group_size"] = order["group_size"]
        options["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    else:
        options |= {"targets": ["Linear"], "scheme": order["scheme"]}
    return kind(**options)


def load(folder: str) -> Any:
    """Return the model in a number type that engines serve."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    return model.to(torch.bfloat16) if model.dtype == torch.float32 else model


def calibration(order: dict[str, Any]) -> dict[str, Any]:
    """Return options that bring the rows, where the algorithm looks at any."""
    from datasets import Dataset

    if not order["calibration"]:
        return {}
    rows = [json.loads(line) for line in Path(order["calibration"]).read_text().splitlines()]
    data = Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])
    longest = max(map(len, rows))
    return {
        "dataset": data,
        "num_calibration_samples": len(rows),
        "max_seq_length": longest,
        # The same rows in the same order, so that the same inputs give the same weights.
        "shuffle_calibration_samples": False,
        "pipeline": "sequential",
    }


def quantize(order: dict[str, Any]) -> dict[str, str]:
    """Write the quantized model; return facts."""
    import compressed_tensors
    import llmcompressor
    from loguru import logger

    warnings: list[str] = []
    logger.add(lambda message: warnings.append(str(message)), level="WARNING")
    model = load(order["model"])
    llmcompressor.oneshot(model=model, recipe=modifier(order), log_dir=None, **calibration(order))
    if fell_back := [warning for warning in warnings if FALLBACK in warning]:
        raise Refusal(" ".join(fell_back[0].split()))
    model.save_pretrained(order["out"], save_compressed=True)
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "llmcompressor": llmcompressor.__version__,
        "compressed_tensors": compressed_tensors.__version__,
    }


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    report = Path(order["report"])
    try:
        report.write_text(json.dumps(quantize(order)))
    except Refusal as exc:
        report.write_text(str(exc))
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
