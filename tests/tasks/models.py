"""Models and data small enough to be written in a line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from weighbridge.core.errors import BadInput
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs, Downloaded, download, pin


def weights(seed: int = 0, kilobytes: int = 64, name: str = "w") -> bytes:
    """A safetensors file with one tensor."""
    numbers = np.random.default_rng(seed).standard_normal(kilobytes * 256).astype(np.float32)
    content: bytes = save({name: numbers})
    return content


def model(seed: int = 0, kilobytes: int = 64) -> dict[str, bytes]:
    """What belongs to a model, and what does not."""
    return {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": weights(seed, kilobytes),
        "pytorch_model.bin": b"pickle",
        "original/consolidated.00.pth": b"pickle",
        "README.md": b"# A model",
        "LICENSE": b"free",
        "training_args.bin": b"pickle",
        "picture.png": b"png",
    }


TAKEN = ["LICENSE", "README.md", "config.json", "model.safetensors", "tokenizer.json"]


def sharded() -> dict[str, bytes]:
    """A model in two weight files with their index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}
    return {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        names[0]: weights(1, name="a"),
        names[1]: weights(2, name="b"),
    }


def rows(count: int = 40) -> bytes:
    """Data as JSON lines."""
    return b"".join(
        json.dumps({"prompt": f"{n}?", "completion": f"{n}!"}).encode() + b"\n"
        for n in range(count)
    )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """The files in a folder."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def header(content: bytes) -> dict[str, dict[str, list[int]]]:
    """A safetensors file's header."""
    (length,) = struct.unpack("<Q", content[:8])
    value: dict[str, dict[str, list[int]]] = json.loads(content[8 : 8 + length])
    return value


def with_header(content: bytes, header: object) -> bytes:
    """The same tensors under another header."""
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def args(model: object, data: object) -> DownloadArgs:
    """Arguments for a model, and data that are one JSON lines file called `train.jsonl`."""
    return DownloadArgs.model_validate({"model": str(model), "data": {"source": str(data)}})


def fetched(arguments: DownloadArgs, workspace: Workspace) -> Downloaded:
    return download(pin(arguments, workspace), arguments, workspace)


def names(folder: Path) -> list[str]:
    """Every file of a folder."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def refused(arguments: DownloadArgs, workspace: Workspace) -> str:
    """The one line by which a download is refused, which keeps nothing."""
    with pytest.raises(BadInput) as caught:
        fetched(arguments, workspace)
    assert "\n" not in str(caught.value)
    assert not list((workspace.store.root / "trees").glob("*"))
    return str(caught.value)


def change_model(arguments: DownloadArgs, path: str, change: Callable[[bytes], bytes]) -> None:
    file = Path(arguments.model.path) / path  # type: ignore[attr-defined]
    file.write_bytes(change(file.read_bytes()))
