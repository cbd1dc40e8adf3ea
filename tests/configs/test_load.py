"""Reading recipes: every complaint names line, field and what to do."""

from pathlib import Path

import pytest

from weighbridge.configs.load import load, parse
from weighbridge.configs.recipe import json_schema
from weighbridge.core.errors import BadInput

ROOT = Path(__file__).resolve().parent.parent.parent
VALID = """\
name: demo
download:
  model: file:///models/base
  data:
    source: file:///data
    train: train.jsonl
finetune:
  r: 8
optimize:
  variants:
    - kind: gguf
      quantization: Q8_0
weigh:
  engines:
    - kind: llama_cpp
deploy:
  target:
    kind: local
    port: 8300
"""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_in_the_tree_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_DEMO", "/made")
    monkeypatch.setenv("BUCKET", "models")
    assert load(path).name


def test_recipe_round_trips_through_json() -> None:
    recipe = parse(VALID)
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


def test_json_schema_shows_plugins_as_plain_alternatives() -> None:
    text = str(json_schema())
    assert "'discriminator'" not in text
    assert "Q8_0" in text
    assert "llama_cpp" in text


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("  r: 8", "  rr: 8", "line 8, finetune.rr: unknown key; did you mean 'r'?"),
        ("  r: 8", "  r: 0", "line 8, finetune.r: "),
        ("  r: 8", "  r: many", "line 8, finetune.r: "),
        ("finetune:", "fintune:", "line 7, fintune: unknown key; did you mean 'finetune'?"),
        ("name: demo", "name: De mo", "line 1, name: "),
        (
            "kind: gguf",
            "kind: ggf",
            "line 11, optimize.variants[0]: no optimizer is called 'ggf'; did you mean",
        ),
        ("quantization: Q8_0", "quantisation: Q8_0", "did you mean 'quantization'?"),
        ("kind: llama_cpp", "kind: lama_cpp", "did you mean 'llama_cpp'?"),
        (
            "kind: llama_cpp",
            "kind: onnx",
            ": none of the engines (onnx) serves gguf; add an engine or a variant",
        ),
        ("deploy:", "name: twice\ndeploy:", "'name' is there twice"),
        ("name: demo", "- demo", "reading recipe"),
        (
            "name: demo",
            "name: ${NOT_SET_ANYWHERE}",
            "environment variable NOT_SET_ANYWHERE is not set",
        ),
        ("name: demo", "name: ${HF_TOKEN}", "looks like a secret"),
    ],
)
def test_mistakes_are_one_line_with_place_and_remedy(
    before: str, after: str, expected: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse(VALID.replace(before, after))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_stage_is_named() -> None:
    with pytest.raises(BadInput, match="weigh: missing"):
        parse(VALID.replace("weigh:\n  engines:\n    - kind: llama_cpp\n", ""))


def test_names_from_the_environment_are_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "support")
    assert parse(VALID.replace("name: demo", "name: ${MODEL_NAME}")).name == "support"
    assert parse(VALID.replace("name: demo", "name: ${NOT_SET:-fallback}")).name == "fallback"


def test_missing_file_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such file; run: weighbridge init"):
        load(tmp_path / "none.yaml")


NO_FINETUNE = VALID.replace("finetune:\n  r: 8", "finetune: none")


def test_a_finished_model_needs_no_fine_tune() -> None:
    recipe = parse(NO_FINETUNE)
    assert recipe.finetune == "none"
    assert type(recipe).model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("quantization: Q8_0", "adapter: true", "gguf-Q8_0-adapter leaves the fine-tune's adapter"),
        ("kind: gguf\n      quantization: Q8_0", "kind: adapter", "adapter leaves the fine-tune's"),
        ("optimize:", "evaluate: {min_gain: 0.1}\noptimize:", "leave them out"),
        ("finetune: none", "finetune: nothing", "line 7, finetune: Input should be"),
    ],
)
def test_what_only_a_fine_tune_has_is_refused_without_one(
    before: str, after: str, expected: str
) -> None:
    text = NO_FINETUNE.replace(before, after)
    if "kind: adapter" in text:
        text = text.replace("kind: llama_cpp", "kind: vllm")
    with pytest.raises(BadInput) as caught:
        parse(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_run_form_offers_no_fine_tune_as_a_choice() -> None:
    variants = json_schema()["properties"]["finetune"]["anyOf"]
    assert [variant.get("const") for variant in variants] == [None, "none"]
