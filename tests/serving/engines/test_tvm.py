"""TVM: its command line, and a real server of a compiled model that must think what transformers thinks."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from core.errors import Unavailable
from serving.client import Client
from serving.engines.tvm import Tvm, TvmArgs
from serving.runner import Running, serve
from serving.shim.client import chat_tokens
from tests.conftest import MACHINE_CACHE

TEXTS = ["Hello, my kettle is broken.", '{"team": "billing", "product": "lamp"}', "naïve café 🙂 — 3.14\n\n\tend"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "grüße 🙂"}]


@pytest.fixture(scope="module")
def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Pieces shorter than the prompts, so that reading and answering take turns.
    args = TvmArgs(max_batch_size=3, prefill_chunk_size=8, alias="tiny")
    with serve(tiny_model, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log") as engine:
        known = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
        yield engine
    assert not [process for process in known if process.is_running()]


@pytest.fixture(scope="module")
def transformer(tiny_model: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def expected(transformer: tuple[Any, Any], text: str, count: int) -> str:
    """What transformers' greedy search says after a plain prompt."""
    import torch

    model, tokenizer = transformer
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)[0]
    return str(tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True))


def test_options_are_tvms_own() -> None:
    args = TvmArgs(num_threads=3, max_batch_size=5, max_total_seq_len=300, prefill_chunk_size=64)
    command = Tvm().command(Path("/models/one"), args, "127.0.0.1", 8080, Path("python"))
    assert command[:2] == ["python", "-I"]
    text = " ".join(command)
    for words in ("--model /models/one", "--max-batch-size 5", "--context-length 300", "--chunk-size 64"):
        assert words in text
    assert Tvm().env(args) == {"TVM_NUM_THREADS": "3"}
    assert Tvm().env(TvmArgs()) == {"TVM_NUM_THREADS": "1"}


def test_only_open_options_are_tuned() -> None:
    given = TvmArgs(num_threads=3, max_batch_size=2)
    assert Tvm().tunings(given, 8) == [given]
    tried = {(args.num_threads, args.max_batch_size) for args in Tvm().tunings(TvmArgs(), 2)}
    assert tried == {(1, 4), (1, 8), (2, 4), (2, 8)}


@pytest.mark.slow
def test_it_answers_chats_and_prompts_streamed_and_not(running: Running, transformer: tuple[Any, Any]) -> None:
    client = Client(running.url)
    assert client.models() == ["tiny"]
    for prompt in (CHAT, "Hello"):
        answer = client.ask(prompt, max_tokens=9)
        assert "".join(client.stream(prompt, max_tokens=9)) == answer.text
        assert (answer.completion_tokens, answer.finish_reason) == (9, "length")
    ids = transformer[1].apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat_tokens(running.url, CHAT) == ids
    assert client.ask(CHAT, max_tokens=1).prompt_tokens == len(ids)


@pytest.mark.slow
def test_many_at_once_say_what_transformers_says_to_each_alone(running: Running, transformer: tuple[Any, Any]) -> None:
    prompts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    lengths = [5 + 7 * (place % 4) for place in range(len(prompts))]
    client = Client(running.url)
    with ThreadPoolExecutor(len(prompts)) as pool:
        said = list(pool.map(lambda p, n: client.ask(p, max_tokens=n).text, prompts, lengths))
    assert said == [expected(transformer, p, n) for p, n in zip(prompts, lengths, strict=True)]


@pytest.mark.slow
def test_an_answer_ends_before_its_stop_sequence(running: Running) -> None:
    client = Client(running.url)
    whole = client.ask("Hello", max_tokens=30).text
    stop = whole[len(whole) // 2 :][:3]
    answer = client.ask("Hello", max_tokens=30, stop=[stop])
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_and_log_probabilities_are_those_of_transformers(
    text: str, running: Running, transformer: tuple[Any, Any]
) -> None:
    import torch

    model, tokenizer = transformer
    prompt = tokenizer("<|im_start|>user\nhi<|im_end|>\n", add_special_tokens=False)["input_ids"]
    completion = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert Tvm().tokenize(running.url, text + "<|im_end|>") == completion
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    wanted = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(completion)]
    assert Tvm().token_logprobs(running.url, prompt, completion) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.slow
def test_the_longest_answers_fit_all_at_once(running: Running) -> None:
    """The pages of the cache are enough for every slot's whole context."""
    client = Client(running.url)
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda n: client.ask("Hello " * n, max_tokens=600).completion_tokens, (3, 5, 7)))
    assert all(count > 0 for count in counts)
    assert client.ask("Hello", max_tokens=3).completion_tokens == 3


@pytest.mark.slow
def test_a_client_that_leaves_frees_its_place(running: Running) -> None:
    for _ in range(4):
        body = {"prompt": "Hello", "max_tokens": 450, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body) as response:
            next(response.iter_lines())
    assert Client(running.url).ask("Hello", max_tokens=3).completion_tokens == 3


@pytest.mark.slow
def test_a_model_that_is_no_plain_llama_is_refused_in_words(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    rope = {**(config.get("rope_parameters") or {}), "rope_type": "llama3"}
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    with (
        pytest.raises(Unavailable, match="builds plain Llamas, and rope_type of this one is something else"),
        serve(model, TvmArgs(), MACHINE_CACHE, tmp_path / "log"),
    ):
        pass
