"""A model that cannot read the rows, or is made to do harm, is refused before hours are spent."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput
from weighbridge.core.safetensors_header import tensors
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import model_check
from weighbridge.tasks.data import SPLITS, Message, Row, write_rows
from weighbridge.tasks.model_check import check, check_configuration, check_weights, embedding_rows
from weighbridge.tasks.model_probe import probe

CHAT = Row(
    prompt=[Message(role="user", content="How are you?")],
    completion=[Message(role="assistant", content="Fine.")],
)


@pytest.fixture
def data(workspace: Workspace, tmp_path: Path) -> Artifact:
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in SPLITS:
        write_rows([CHAT], folder / f"{split}.jsonl")
    return workspace.store.add(folder, "jsonl")


@pytest.fixture
def changed(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of the tiny model with other files in it."""

    def make(**files: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_model, folder)
        for name, content in files.items():
            path = folder / name.replace("__", ".")
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return make


def refused(model: Path, data: Artifact) -> str:
    """Probe a model in this process; return why it is refused."""
    with pytest.raises(BadInput) as caught:
        probe(model, data.path, 10, embedding_rows(shapes_of(model)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Refuse a terabyte here as the check's own process does: where memory is overcommitted without
    limit, as kubelet sets it, the kernel gives it and then kills.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def shapes_of(model: Path) -> dict[str, list[int]]:
    return {name: shape for name, _, shape in tensors(model)}


def config_of(model: Path, **changes: Any) -> dict[str, Any]:
    return json.loads((model / "config.json").read_text()) | changes


def test_a_sound_model_passes_and_is_not_tried_twice(
    tiny_model: Path, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(Settings(cache=tmp_path / "cache"))
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    check(model, data, workspace)
    monkeypatch.setattr(model_check, "run", None)
    check(model, data, workspace)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWTH = (
    "{% set ns = namespace(x='aaaaaaaa') %}"
    "{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)


@pytest.mark.parametrize("only_for_tools", [False, True])
def test_a_chat_template_without_end_or_bounds_is_stopped(
    changed: Callable[..., Path],
    tiny_model: Path,
    workspace: Workspace,
    data: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    only_for_tools: bool,
) -> None:
    monkeypatch.setattr(model_check, "SECONDS", 1.0)
    monkeypatch.setattr(model_check, "MEMORY", 1 << 30)
    files: dict[str, Any] = {"chat_template__jinja": LOOP}
    if only_for_tools:
        sound = (tiny_model / "chat_template.jinja").read_text()
        named = [{"name": "default", "template": sound}, {"name": "tool_use", "template": GROWTH}]
        config = json.loads((tiny_model / "tokenizer_config.json").read_text())
        files = {"tokenizer_config__json": config | {"chat_template": named}}
    folder = changed(**files)
    if only_for_tools:
        (folder / "chat_template.jinja").unlink()
    model = workspace.store.add(folder, "safetensors")
    with pytest.raises(BadInput, match="its tokenizer or chat template takes more than 1 s or 1 G"):
        check(model, data, workspace)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{% for i in range(10**12) %}{% endfor %}", "it refuses a row: Range too big"),
        ("{{ 'a' * 10**12 }}", "applying the chat template: it refuses a row: MemoryError"),
        ("{{ 1 / 0 }}", "it refuses a row: division by zero"),
        ("{% for %}", "it refuses a row: Expected"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
    ],
)
def test_a_chat_template_that_fails_is_refused_with_its_reason(
    tiny_model: Path, template: str, words: str
) -> None:
    from weighbridge.tasks.encoding import encode, load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = template
    with bounded_memory(), pytest.raises(BadInput, match="applying the chat template") as caught:
        encode(tokenizer, [CHAT])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_that_a_configuration_names_is_not_run(
    changed: Callable[..., Path], tiny_model: Path, data: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code = {"AutoConfig": f"{tmp_path}--evil.Config", "AutoTokenizer": f"{tmp_path}--evil.T"}
    config = config_of(tiny_model, model_type="evil", auto_map=code)
    assert "its own code (auto_map) is never run" in refused(changed(config__json=config), data)
    assert not (tmp_path / "ran").exists()


def test_tokens_without_embeddings_are_refused(
    changed: Callable[..., Path], tiny_model: Path, data: Artifact
) -> None:
    tokenizer = json.loads((tiny_model / "tokenizer.json").read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"] += [
        {
            "id": len(tokenizer["model"]["vocab"]) + n,
            "content": f"<|{n}|>",
            "special": True,
            **plain,
        }
        for n in range(100)
    ]
    assert "it has tokens up to number" in refused(changed(tokenizer__json=tokenizer), data)


def test_a_broken_tokenizer_is_refused(changed: Callable[..., Path], data: Artifact) -> None:
    said = refused(changed(tokenizer__json="\x80\x04pickle"), data)
    assert said.startswith("loading the tokenizer: ")


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 10**9},
        {"n_layer": 100},
        {"vocab_size": 10**12},
        {"hidden_size": -1},
        {"hidden_size": float("inf")},
        {"num_local_experts": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
    ],
)
def test_a_configuration_of_another_model_than_the_weights_is_refused(
    config: dict[str, Any],
) -> None:
    shapes = {f"model.layers.{n}.w": [64, 64] for n in range(8)}
    with pytest.raises(BadInput, match=r"checking config\.json: \w+ is .*, and weights of such"):
        check_configuration(config, shapes)


def test_a_sound_configuration_passes(tiny_model: Path) -> None:
    shapes = shapes_of(tiny_model)
    check_configuration(config_of(tiny_model), shapes)
    assert embedding_rows(shapes) == config_of(tiny_model)["vocab_size"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_weights_that_are_no_numbers_is_refused_with_the_tensor(
    tiny_model: Path, data: Artifact, tmp_path: Path, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    workspace = Workspace(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = workspace.store.add(folder, "safetensors")
    for _ in range(2):  # what was refused is not kept as found good
        with pytest.raises(BadInput) as caught:
            check(model, data, workspace)
        assert f"checking model.safetensors: tensor {name} holds NaN or inf" in str(caught.value)


def test_the_weights_of_a_file_are_read_once(
    tiny_model: Path, data: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(Settings(home=tmp_path / "home", cache=tmp_path / "cache"))
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    check_weights(model, workspace)
    monkeypatch.setattr(model_check, "not_finite", None)
    check_weights(model, workspace)
