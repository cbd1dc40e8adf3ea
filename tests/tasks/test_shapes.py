"""Bases of every shape go through, or are refused before anything is trained."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import MACHINE_CACHE
from tests.tasks import shapes
from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput
from weighbridge.core.safetensors_header import tensors
from weighbridge.serving import llama_cpp_native
from weighbridge.tasks.answer_end import tokens_that_stop
from weighbridge.tasks.data import SPLITS, Message, Row, write_rows
from weighbridge.tasks.encoding import load_tokenizer
from weighbridge.tasks.model_check import check_configuration, embedding_rows
from weighbridge.tasks.model_files import read_object
from weighbridge.tasks.model_probe import probe
from weighbridge.tasks.optimizers.gguf_conversion import LOCK, SCRIPTS

REFUSED = {
    "tokens added, not resized": "it has tokens up to number",
    "a template without end": "no answer would ever end",
}
NOT_LOADED = {
    "pad beyond the vocabulary": "[Pp]adding_idx must be within",
    "quantized for another library": "gptq|GPTQ",
}
"""Refused when the weights are loaded, which training begins with."""
NO_GGUF = {"Phi3": "tokenizer.model", "Gemma2": "tokenizer.model", "GPT2": "n_ctx"}
"""What llama.cpp's converter says of the vocabulary or the configuration."""
ALL_AT_ONCE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import convert
said = {}
for folder in sorted(Path(sys.argv[3]).iterdir()):
    report = folder.with_name(folder.name + ".report")
    words = (sys.argv[2], folder, f"{folder}.gguf", "f32", "x", report, "2", "--dry-run")
    try:
        convert.main(*map(str, words))
        said[folder.name] = ""
    except Exception as exc:
        said[folder.name] = f"{type(exc).__name__}: {exc}"
print(json.dumps(said))
"""
CHAT = Row(
    prompt=[Message(role="user", content="How are you?")],
    completion=[Message(role="assistant", content="Fine.")],
)


@pytest.fixture(scope="module")
def made(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of every shape."""
    folder = tmp_path_factory.mktemp("shapes")
    for name in shapes.SHAPES:
        shapes.make(name, tiny_model, folder / name)
    return folder


@pytest.fixture(scope="module")
def converted(made: Path) -> Mapping[str, str]:
    """What the converter says of each in one process, which takes a second or two to begin."""
    sources = llama_cpp_native.source(MACHINE_CACHE)
    command = [ensure(LOCK, MACHINE_CACHE).python, "-c", ALL_AT_ONCE, SCRIPTS, sources, made]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for split in SPLITS:
        write_rows([CHAT], folder / f"{split}.jsonl")
    return folder


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_of_model_goes_through_or_is_refused_before_training(
    name: str, made: Path, data: Path, converted: Mapping[str, str]
) -> None:
    from weighbridge.tasks import hf_models

    model = made / name
    found = {tensor: shape for tensor, _, shape in tensors(model)}
    check_configuration(read_object("config.json", model / "config.json"), found)
    if words := REFUSED.get(name):
        with pytest.raises(BadInput, match=words):
            probe(model, data, 10, embedding_rows(found))
        return
    probe(model, data, 10, embedding_rows(found))
    if words := NOT_LOADED.get(name):
        with pytest.raises(BadInput, match=words):
            hf_models.load_model(model, to="cpu")
        return
    with hf_models.quiet():
        hf_models.load_model(model, to="cpu")
    assert tokens_that_stop(model, load_tokenizer(model))
    assert NO_GGUF.get(name, "") in converted[name]
    assert bool(converted[name]) == (name in NO_GGUF), converted[name]
