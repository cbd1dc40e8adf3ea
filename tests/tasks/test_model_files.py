"""Files of a model: which are taken, and which are refused before or after they are fetched."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks.models import (
    TAKEN,
    args,
    change_model,
    fetched,
    header,
    model,
    names,
    refused,
    rows,
    sharded,
    weights,
    with_header,
    write,
)
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs


def test_a_model_is_taken_without_pickles_and_without_what_is_not_the_model(
    here: DownloadArgs, workspace: Workspace
) -> None:
    assert names(fetched(here, workspace).model.path) == TAKEN


def test_shards_come_with_their_index(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "model", sharded())
    write(tmp_path / "data", {"train.jsonl": rows()})
    assert names(
        fetched(args(tmp_path / "model", tmp_path / "data"), workspace).model.path
    ) == sorted(sharded())


def test_weights_that_are_there_twice_are_taken_once(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    write(tmp_path / "model", {"consolidated.safetensors": weights(3)})
    assert names(fetched(here, workspace).model.path) == TAKEN


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b"x"},
            "its weights are pickles (pytorch_model.bin)",
        ),
        ({"config.json": b"{}"}, "there are no *.safetensors"),
        ({"model.safetensors": weights()}, "there is no config.json"),
        ({"config.json": b"{", "model.safetensors": weights()}, "config.json: it is not JSON"),
        (
            {"config.json": b"[]", "model.safetensors": weights()},
            "config.json: it is not a JSON object",
        ),
        (
            {path: content for path, content in sharded().items() if "00002-of" not in path},
            "it names model-00002-of-00002.safetensors, which is not there",
        ),
        (
            {path: content for path, content in sharded().items() if "index" not in path},
            "there are 2 weight files and no",
        ),
        (
            sharded() | {"model-00002-of-00002.safetensors": weights(name="c")},
            "tensor b of the index is not in it",
        ),
        (sharded() | {"model.safetensors.index.json": b"{}"}, "it has no weight_map"),
        ({"config.json": b'{"a":' * 100_000, "model.safetensors": weights()}, "nested too deep"),
        ({"config.json": b'{"a": NaN}', "model.safetensors": weights()}, "it holds NaN"),
        (
            model() | {"tokenizer_config.json": b"[" * 100_000},
            "tokenizer_config.json: it is not JSON: it is nested too deep",
        ),
        (model() | {"generation_config.json": b"\x80\x04pickle"}, "it is not JSON"),
        (model() | {"config.json": b'{"a": "' + b"a" * (17 << 20) + b'"}'}, "16.0 MiB is the most"),
    ],
)
def test_what_is_no_whole_safetensors_model_is_refused(
    workspace: Workspace, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    write(tmp_path / "model", files)
    write(tmp_path / "data", {"train.jsonl": rows()})
    assert words in refused(args(tmp_path / "model", tmp_path / "data"), workspace)


def _shifted(content: bytes) -> bytes:
    found = header(content)
    found["w"]["data_offsets"] = [offset + 4 for offset in found["w"]["data_offsets"]]
    return with_header(content, found)


def _reshaped(content: bytes) -> bytes:
    found = header(content)
    found["w"]["shape"] = [7]
    return with_header(content, found)


def _zipped(content: bytes) -> bytes:
    """What torch.save writes: a pickle in a zip."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", content)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "its tensors take"),
        (lambda content: content + b"x", "its tensors take"),
        (lambda content: b"", "does not fit"),
        (lambda content: content[:7], "does not fit"),
        (lambda content: b"\xff" * 8 + content[8:], "does not fit"),
        (lambda content: content[:8] + b"\x00" + content[9:], "its header cannot be read"),
        (lambda content: with_header(content, []), "its header is not an object"),
        (lambda content: with_header(content, {"w": {}}), "its header cannot be read"),
        (lambda content: pickle.dumps({"w": b"0" * 100}), "its header cannot be read"),
        (lambda content: _zipped(pickle.dumps({"w": 1})), "its header cannot be read"),
        (lambda content: b"\x93NUMPY\x01\x00" + pickle.dumps({"w": 1}), "cannot be read"),
        (_shifted, "starts at byte 4"),
        (_reshaped, "where its shape needs 28"),
    ],
)
def test_a_corrupted_weight_file_is_refused(
    here: DownloadArgs, workspace: Workspace, change: Callable[[bytes], bytes], words: str
) -> None:
    change_model(here, "model.safetensors", change)
    said = refused(here, workspace)
    assert said.startswith("checking model.safetensors: the file is corrupted")
    assert words in said


def test_a_tokenizer_larger_than_any_is_refused_before_it_is_fetched(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    # A file with a hole: it takes no room.
    os.truncate(tmp_path / "model" / "tokenizer.json", 1 << 30)
    assert "tokenizer.json has 1.00 GiB, and no more than 64.0 MiB is taken" in refused(
        here, workspace
    )
