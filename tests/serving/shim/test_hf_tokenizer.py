"""The tokenizer without transformers does what transformers does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from weighbridge.serving.shim.hf_tokenizer import HfTokenizer

TEXTS = [
    "Hello, my kettle is broken.",
    "naïve café 🙂 — 3.14\n\n\tend",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "grüße 🙂"}]


@pytest.fixture(scope="module")
def theirs(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [False, True])
def test_texts_are_cut_and_put_together_as_by_transformers(
    text: str, special: bool, tiny_model: Path, theirs: Any
) -> None:
    ids = theirs(text, add_special_tokens=special)["input_ids"]
    ours = HfTokenizer(tiny_model)
    assert ours.tokenize(text, special=special) == ids
    assert ours.detokenize(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_chats_are_rendered_as_by_transformers(tiny_model: Path, theirs: Any) -> None:
    expected = theirs.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert HfTokenizer(tiny_model).chat(CHAT) == expected


def test_templates_may_use_what_transformers_gives_them(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}\n  {% if m.role == 'none' %}{% continue %}{% endif %}\n"
        "{{ eos_token }}{{ m | tojson }}{{ m.content | trim | upper }}\n{% endfor %}\n"
    )
    theirs = AutoTokenizer.from_pretrained(model)
    expected = theirs.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert HfTokenizer(model).chat(CHAT) == expected


def test_a_template_that_refuses_says_so(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system prompts here') }}")
    with pytest.raises(ValueError, match="no system prompts here"):
        HfTokenizer(model).chat(CHAT)


def test_a_model_without_a_template_has_no_chat(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has none"):
        HfTokenizer(model).chat(CHAT)


def test_all_tokens_that_end_an_answer_are_known(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    assert HfTokenizer(model).ends == {
        json.loads((model / "config.json").read_text())["eos_token_id"]
    }
    (model / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert HfTokenizer(model).ends == {5, 7}
