"""What belongs to a safetensors model: which files are taken, and which are refused."""

import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from weighbridge.core import strict_json
from weighbridge.core.errors import BadInput
from weighbridge.core.formatting import human_size
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.safetensors_header import problem, read_header

INDEX: Final = "model.safetensors.index.json"
# The names that save_pretrained gives, in one file or in shards.
WEIGHTS: Final = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
WANTED: Final = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    INDEX,
    # The card says where a model comes from, and some licences must go with the weights.
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
# Not tokenizer.json: it is read where its size in memory is bounded, see model_probe.
CONFIGURATIONS: Final = (
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
LARGEST_BESIDE_WEIGHTS: Final = 64 << 20
"""Bytes of any other file. The largest tokenizers that we know take half of that; they are read
into memory as a whole, which takes many times as much.
"""
LARGEST_CONFIGURATION: Final = 16 << 20
"""Bytes of a JSON file that is read here: configurations take kilobytes, an index of a hundred
thousand tensors 10 MB.
"""
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def choose(files: list[RemoteFile], uri: str) -> list[RemoteFile]:
    """Return the files of a model that are needed to run it and to pass it on.

    Raises:
        BadInput: there is no configuration or there are no safetensors weights, or a file beside
            them is too large to be one of a model.
    """
    weights = _weights(files, uri)
    paths = {file.path for file in files}
    if "config.json" not in paths:
        remedy = "give the folder or repository of a whole model in the Hugging Face layout"
        raise BadInput(f"looking for a model in {uri}", "there is no config.json", remedy)
    if len(weights) > 1 and INDEX not in paths:
        wrong = f"there are {len(weights)} weight files and no {INDEX}"
        raise BadInput(
            f"looking for a model in {uri}", wrong, "add the index that the weights were saved with"
        )
    others = [file for file in files if any(_matches(file.path, pattern) for pattern in WANTED)]
    for file in others:
        if file.size > LARGEST_BESIDE_WEIGHTS:
            wrong = (
                f"{file.path} has {human_size(file.size)}, and no more than "
                f"{human_size(LARGEST_BESIDE_WEIGHTS)} is taken"
            )
            remedy = "choose another revision or repository of the model"
            raise BadInput(f"looking for a model in {uri}", wrong, remedy)
    return sorted([*others, *weights], key=lambda file: file.path)


def _matches(path: str, pattern: str) -> bool:
    # fnmatch's `*` runs over slashes: weights in folders below would be taken, too.
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


def _weights(files: list[RemoteFile], uri: str) -> list[RemoteFile]:
    """Return the weight files of the usual names where there are any: some repositories hold them
    twice.
    """
    top = [file for file in files if _matches(file.path, "*.safetensors")]
    # Some repositories hold the weights twice: again as consolidated.safetensors, for other code.
    weights = [file for file in top if WEIGHTS.fullmatch(file.path)] or top
    if weights:
        return weights
    pickles = [
        file.path for file in files if any(_matches(file.path, pattern) for pattern in PICKLES)
    ]
    if pickles:
        wrong = (
            f"its weights are pickles ({', '.join(pickles[:3])}), and loading a pickle runs "
            "whatever code is in it"
        )
        raise BadInput(
            f"looking for a model in {uri}",
            wrong,
            "choose a revision or repository with *.safetensors",
        )
    raise BadInput(
        f"looking for a model in {uri}", "there are no *.safetensors", "check the address"
    )


def inspect(file: RemoteFile, path: Path) -> None:
    """Refuse weights that cannot be loaded, and a configuration that is no JSON object. Raises
    BadInput.
    """
    if file.path.endswith(".safetensors"):
        if wrong := problem(path):
            raise BadInput(
                f"checking {file.path}",
                f"the file is corrupted: {wrong}",
                "fetch or write it again",
            )
    elif file.path in CONFIGURATIONS:
        read_object(file.path, path)


def check_shards(index: Path, shards: Mapping[str, Path]) -> None:
    """Refuse an index of which a tensor is not in its shard.

    Raises:
        BadInput: a shard, or a tensor in it, is missing.
    """
    placed = read_object(INDEX, index).get("weight_map")
    if not isinstance(placed, dict):
        raise BadInput(f"checking {INDEX}", "it has no weight_map", "save the model again")
    missing = sorted(set(map(str, placed.values())) - shards.keys())
    if missing:
        wrong = (
            f"it names {', '.join(missing[:3])}, which {'is' if len(missing) == 1 else 'are'} "
            "not there"
        )
        raise BadInput(f"checking {INDEX}", wrong, "add the missing weight files")
    # Of the headers alone: shards are many gigabytes, and their digests have been checked before.
    tensors = {name: read_header(path).keys() for name, path in shards.items()}
    for tensor, shard in placed.items():
        if tensor not in tensors[shard]:
            raise BadInput(
                f"checking {shard}",
                f"tensor {tensor} of the index is not in it",
                "fetch or write it again",
            )


def read_object(name: str, path: Path) -> dict[str, Any]:
    """Return a JSON object from a file. Raises BadInput if it holds anything else."""
    if (size := path.stat().st_size) > LARGEST_CONFIGURATION:
        wrong = f"it has {human_size(size)}; {human_size(LARGEST_CONFIGURATION)} is the most"
        raise BadInput(f"checking {name}", wrong, "give the model as its makers publish it")
    try:
        value = strict_json.parse(path.read_bytes())
    except ValueError as exc:
        raise BadInput(
            f"checking {name}", f"it is not JSON: {exc}", "fetch or write it again"
        ) from exc
    if not isinstance(value, dict):
        raise BadInput(f"checking {name}", "it is not a JSON object", "fetch or write it again")
    return value


def copy_all_but_weights(model: Path, to: Path) -> None:
    """Copy what renders a prompt out of a model's folder into a new one: tokenizer, chat template,
    configuration.
    """
    to.mkdir()
    for path in sorted(model.iterdir()):
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja", ".txt", ".model")
            and path.name != INDEX
        ):
            shutil.copyfile(path, to / path.name)
