"""What ends an answer."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from weighbridge.core.errors import BadInput
from weighbridge.serving import llama_cpp_native
from weighbridge.tasks.answer_end import (
    STOPS_OF_LLAMA_CPP,
    token_that_ends,
    tokens_that_stop,
    write_stops,
)
from weighbridge.tasks.data import Message, Row
from weighbridge.tasks.encoding import encode, load_tokenizer
from weighbridge.tasks.optimizers.gguf_conversion import ends_of

EACH = "{% for m in messages %}"
NEXT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = f"{EACH}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}{NEXT}"
OTHER_END = CHATML.replace("<|im_end|>", "<|turn_over|>")


def tokenizer_with(
    model: Path, template: str | None = None, *, eos: str | None = "<|endoftext|>"
) -> Any:
    """The tiny model's tokenizer, whose end of text is `<|endoftext|>`, with another template."""
    tokenizer = load_tokenizer(model)
    tokenizer.add_tokens(["<|turn_over|>"], special_tokens=True)
    tokenizer.eos_token = eos
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def chat(question: str, answer: str) -> Row:
    return Row(
        prompt=[Message(role="user", content=question)],
        completion=[Message(role="assistant", content=answer)],
    )


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (OTHER_END, "<|turn_over|>"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|>\n<|endoftext|>"), "<|im_end|>"),
        (CHATML.replace("<|im_end|>\n", "\n{{ eos_token }}"), "<|endoftext|>"),
        (CHATML.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}"), "<|im_end|>"),
    ],
    ids=["chatml", "a token of its own", "end of text after it", "end of text", "between turns"],
)
def test_the_token_after_the_assistants_words_ends_a_chats_answer(
    tiny_model: Path, template: str, end: str
) -> None:
    tokenizer = tokenizer_with(tiny_model, template)
    assert tokenizer.convert_ids_to_tokens(token_that_ends(tokenizer, chat=True)) == end
    (row,) = encode(tokenizer, [chat("How are you?", "Fine.")])
    assert tokenizer.decode(row.completion).replace("\n", "") == f"Fine.{end}"
    assert tokens_that_stop(tiny_model, tokenizer)[0] == row.completion[-1]


def test_plain_text_ends_with_the_tokenizers_end_of_text(tiny_model: Path) -> None:
    tokenizer = tokenizer_with(tiny_model, CHATML)
    (row,) = encode(tokenizer, [Row(prompt="2 + 2 =", completion=" 4")])
    assert tokenizer.decode(row.completion) == " 4<|endoftext|>"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        CHATML.replace("<|im_end|>", ""),
        CHATML.replace("<|im_end|>", "<|no_token|>"),
    ],
    ids=["no special token", "only a beginning", "text that looks like a token"],
)
def test_a_template_that_ends_nothing_is_refused_with_what_to_do(
    tiny_model: Path, template: str
) -> None:
    tokenizer = tokenizer_with(tiny_model, template)
    with pytest.raises(BadInput, match=r"no answer would ever end.*eos_token") as caught:
        encode(tokenizer, [chat("a", "b")])
    assert "\n" not in str(caught.value)


def test_plain_text_without_an_end_of_text_is_refused_with_what_to_do(tiny_model: Path) -> None:
    tokenizer = tokenizer_with(tiny_model, eos=None)
    with pytest.raises(BadInput, match=r"no answer would ever end.*tokenizer_config\.json"):
        encode(tokenizer, [Row(prompt="a", completion="b")])


def test_a_tokenizer_that_ends_every_prompt_is_refused_with_what_to_do(tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny_model)
    end = (str(tokenizer.eos_token), tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    with pytest.raises(BadInput, match="add_eos_token: false"):
        encode(tokenizer, [Row(prompt="a", completion="b")])


@pytest.mark.parametrize(
    "row",
    [
        chat("a", "b<|im_end|>c"),
        chat("a", "<|endoftext|>"),
        Row(prompt="a", completion="b<|endoftext|>c"),
    ],
)
def test_an_answer_that_holds_what_ends_it_is_refused(tiny_model: Path, row: Row) -> None:
    with pytest.raises(BadInput, match=r"the answer of row 1 holds <\|\w+\|>"):
        encode(tokenizer_with(tiny_model, CHATML), [row])


def test_plain_text_may_bring_its_end(tiny_model: Path) -> None:
    tokenizer = tokenizer_with(tiny_model)
    (row,) = encode(tokenizer, [Row(prompt="a", completion="b<|endoftext|>")])
    assert tokenizer.decode(row.completion) == "b<|endoftext|>"


def test_generation_stops_at_what_template_tokenizer_configuration_and_llama_cpp_name(
    tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_with(tiny_model, OTHER_END, eos="<|pad|>")
    word = tokenizer("hello", add_special_tokens=False)["input_ids"][0]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [start, word]}))
    stops = tokenizer.convert_ids_to_tokens(tokens_that_stop(tmp_path, tokenizer))
    assert stops[0] == "<|turn_over|>"
    assert set(stops) == {"<|turn_over|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"}


def test_every_engine_reads_the_stops_from_the_models_folder(
    tiny_model: Path, tmp_path: Path
) -> None:
    from weighbridge.serving.shim.hf_tokenizer import HfTokenizer

    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = tokenizer_with(model, OTHER_END)
    tokenizer.save_pretrained(model)
    settings = {"eos_token_id": 0, "temperature": 0.6, "do_sample": True}
    (model / "generation_config.json").write_text(json.dumps(settings))
    write_stops(model, tokenizer)
    written = (model / "generation_config.json").read_bytes()
    assert HfTokenizer(model).ends == set(tokens_that_stop(model, tokenizer))
    assert json.loads(written)["temperature"] == 0.6
    write_stops(model, tokenizer)
    assert (model / "generation_config.json").read_bytes() == written


@pytest.mark.parametrize(
    "named", ["</s>", {}, [[2]], [1e99], True, ["</s>", 2], None, "2"], ids=str
)
def test_ends_that_are_no_numbers_of_tokens_are_left_out(
    tiny_model: Path, tmp_path: Path, named: Any
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = load_tokenizer(model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    expected = set(tokens_that_stop(model, tokenizer))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    assert set(tokens_that_stop(model, tokenizer)) <= expected
    write_stops(model, tokenizer)
    written = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert written == sorted(tokens_that_stop(model, tokenizer))


def test_a_gguf_names_the_end_of_text_the_end_of_a_turn_and_what_llama_cpp_does_not_know(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = tokenizer_with(model, OTHER_END)
    tokenizer.save_pretrained(model)
    start, end, turn = (
        int(tokenizer.convert_tokens_to_ids(token))
        for token in ("<|im_start|>", "<|endoftext|>", "<|turn_over|>")
    )
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, start]}))
    assert ends_of(model) == [end, turn, start]


def test_our_table_of_stops_is_llama_cpps() -> None:
    cache = Path.home() / ".cache" / "weighbridge"
    if not llama_cpp_native.is_fetched(cache):
        pytest.skip("llama.cpp's sources are not here")
    source = (llama_cpp_native.source(cache) / "src" / "llama-vocab.cpp").read_text()
    pattern = r"special_eog_ids\.clear\(\);.*?special_eog_ids\.insert\(t\.second\)"
    table = re.search(pattern, source, re.DOTALL)
    assert table
    assert re.findall(r't\.first == "(.*?)"', table[0]) == list(STOPS_OF_LLAMA_CPP)
