"""The whole chain as a user runs it: a recipe in a file, the command in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from weighbridge.core.processes import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = 48


def write_data(folder: Path) -> Path:
    """Chats short enough for the tiny model."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, start in (("train", 0), ("validation", 1000), ("test", 2000)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"order {n}"},
                    {"role": "assistant", "content": f"{n} ok"},
                ]
            }
            for n in range(start, start + (ROWS if split == "train" else 6))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(model: str, data: str, **changes: Any) -> dict[str, Any]:
    """A recipe that goes through every stage in seconds: a random model learns next to nothing, and
    may.
    """
    document: dict[str, Any] = {
        "name": "chain",
        "download": {
            "model": model,
            "data": {
                "source": data,
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "test": "test.jsonl",
            },
        },
        "finetune": {
            "max_steps": 6,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
        },
        "evaluate": {
            "metrics": [{"kind": "exact_match"}, {"kind": "nll"}],
            "min_gain": -1.0,
            "max_new_tokens": 8,
        },
        "optimize": {
            "variants": [{"kind": "gguf", "quantization": name} for name in ("F16", "Q8_0")]
        },
        "weigh": {
            "engines": [{"kind": "llama_cpp", "threads": 1, "parallel": 2, "ctx_size": 512}],
            "concurrency": [1, 2],
            "requests": 4,
            "seconds": 0.2,
            "max_tokens": 8,
            "repeats": 0,
            "price_per_hour": 0.1,
        },
        "select": {"max_loss": None, "max_nll_increase": None, "max_length_change": None},
        "deploy": {"target": {"kind": "local", "port": free_port()}},
    }
    for path, value in changes.items():
        binding: Any = document
        *outer, last = path.split("__")
        for part in outer:
            binding = binding.setdefault(part, {})
        binding[last] = value
    return document


def write(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(content)))
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "weighbridge.cli.main", *map(str, arguments)]


def weighbridge(*arguments: str | Path, timeout: float = 540) -> subprocess.CompletedProcess[str]:
    """The command, run to its end, with the test's own homes from the environment."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
