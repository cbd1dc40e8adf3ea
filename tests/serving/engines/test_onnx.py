"""ONNX Runtime: its command line, and a real server of a built model that must think what transformers thinks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from core.errors import Unavailable
from serving.client import Client, post
from serving.engines.onnx import Onnx, OnnxArgs
from serving.runner import Running, serve
from serving.shim.client import chat_tokens
from tests.conftest import MACHINE_CACHE

TEXTS = ["Hello, my kettle is broken.", '{"team": "billing", "product": "lamp"}', "naïve café 🙂 — 3.14\n\n\tend"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "grüße 🙂"}]


@pytest.fixture(scope="module")
def running(onnx_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Pieces shorter than the prompts, so that reading and answering take turns.
    args = OnnxArgs(intra_op_num_threads=1, max_batch_size=3, chunk_size=8, alias="tiny")
    with serve(onnx_tiny, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log") as engine:
        yield engine


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


# The command


def test_options_are_onnx_runtimes_own() -> None:
    args = OnnxArgs(intra_op_num_threads=3, max_batch_size=5, context_length=300, allow_spinning=True)
    command = Onnx().command(Path("/models/one"), args, "127.0.0.1", 8080, Path("python"))
    assert command[:2] == ["python", "-I"]
    text = " ".join(command)
    for words in ("--model /models/one", "--intra-op-num-threads 3", "--max-batch-size 5", "--context-length 300"):
        assert words in text
    assert "--allow-spinning" in command
    assert "--allow-spinning" not in Onnx().command(Path("m"), OnnxArgs(), "127.0.0.1", 1, Path("python"))


def test_only_open_options_are_tuned() -> None:
    given = OnnxArgs(intra_op_num_threads=3, max_batch_size=2)
    assert Onnx().tunings(given, 8) == [given]
    tried = {(args.intra_op_num_threads, args.max_batch_size) for args in Onnx().tunings(OnnxArgs(), 2)}
    assert tried == {(1, 4), (1, 8), (2, 4), (2, 8)}


# The server


@pytest.mark.slow
def test_it_answers_chats_and_prompts_streamed_and_not(running: Running) -> None:
    client = Client(running.url)
    assert client.models() == ["tiny"]
    for prompt in (CHAT, "Hello"):
        answer = client.ask(prompt, max_tokens=9)
        assert "".join(client.stream(prompt, max_tokens=9)) == answer.text
        assert (answer.completion_tokens, answer.finish_reason) == (9, "length")


@pytest.mark.slow
def test_usage_counts_the_tokens_of_the_chat_template(running: Running, transformer: tuple[Any, Any]) -> None:
    ids = transformer[1].apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat_tokens(running.url, CHAT) == ids
    assert Client(running.url).ask(CHAT, max_tokens=1).prompt_tokens == len(ids)


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
def test_seeds_repeat_what_was_drawn(running: Running) -> None:
    client = Client(running.url)
    first, again, other = (
        client.ask("Hello", max_tokens=20, temperature=1.5, seed=seed, top_p=0.9).text for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.slow
@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"])
def test_its_tokens_are_the_tokenizers(text: str, running: Running, transformer: tuple[Any, Any]) -> None:
    assert Onnx().tokenize(running.url, text) == transformer[1](text, add_special_tokens=False)["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_log_probabilities_are_those_of_transformers(text: str, running: Running, transformer: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = transformer
    prompt = tokenizer("<|im_start|>user\nhi<|im_end|>\n", add_special_tokens=False)["input_ids"]
    completion = tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    wanted = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(completion)]
    assert Onnx().token_logprobs(running.url, prompt, completion) == pytest.approx(wanted, abs=1e-3)
    assert Onnx().token_logprobs(running.url, prompt[:1], completion[:1]) != []


@pytest.mark.slow
def test_a_client_that_leaves_frees_its_place(running: Running) -> None:
    with httpx.stream(
        "POST", f"{running.url}/v1/completions", json={"prompt": "Hello", "max_tokens": 450, "stream": True}
    ) as response:
        next(response.iter_lines())
    answers = [Client(running.url).ask("Hello", max_tokens=3).text for _ in range(2)]
    assert answers[0] == answers[1]
    reply = post(f"{running.url}/v1/completions", {"prompt": "Hello", "max_tokens": 3, "temperature": 0})
    assert reply["choices"][0]["text"] == answers[0]


@pytest.mark.slow
def test_nothing_is_left_when_it_is_stopped(onnx_tiny: Path, tmp_path: Path) -> None:
    with serve(onnx_tiny, OnnxArgs(intra_op_num_threads=1), MACHINE_CACHE, tmp_path / "log") as engine:
        known = [psutil.Process(engine.process.pid), *psutil.Process(engine.process.pid).children(recursive=True)]
    assert not [process for process in known if process.is_running()]


@pytest.mark.slow
def test_a_damaged_file_is_told_with_onnx_runtimes_own_words(onnx_tiny: Path, tmp_path: Path) -> None:
    for path in onnx_tiny.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.onnx").unlink()
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(Unavailable, match=r"model\.onnx failed:Protobuf parsing failed"),
        serve(tmp_path, OnnxArgs(), MACHINE_CACHE, tmp_path / "log"),
    ):
        pass
