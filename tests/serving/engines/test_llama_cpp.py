"""llama.cpp: its command line, and a real server of a converted model that must think what
transformers thinks.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MACHINE_CACHE
from tests.serving.engines.shimmed import TEXTS
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import llama_cpp_native
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines.base import AUTO_CONTEXT
from weighbridge.serving.engines.llama_cpp import LlamaCpp, LlamaCppArgs, trained_context
from weighbridge.serving.load import run_load
from weighbridge.serving.openai_client import Client, RequestRefused, post
from weighbridge.tasks.optimizers.gguf import Gguf, GgufArgs


@pytest.fixture(scope="module")
def gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model's F16 artifact."""
    workspace = Workspace(
        Settings(home=tmp_path_factory.mktemp("llama_cpp") / "home", cache=MACHINE_CACHE)
    )
    rows = tmp_path_factory.mktemp("rows")
    row = json.dumps(
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "x"}],
        }
    )
    for split in ("train", "validation", "test"):
        (rows / f"{split}.jsonl").write_text(row + "\n")
    out = tmp_path_factory.mktemp("gguf")
    optimizer = Gguf()
    model = workspace.store.add(tiny_model, "safetensors", adopt=False)
    data = workspace.store.add(rows, "jsonl")
    optimizer.optimize(model, data, GgufArgs(quantization="F16"), out, workspace)
    return out


@pytest.fixture(scope="module")
def running(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    args = LlamaCppArgs(threads=1, parallel=2, alias="tiny")
    with serve(gguf, args, MACHINE_CACHE, tmp_path_factory.mktemp("log") / "log") as engine:
        yield engine


def header(path: Path, *entries: tuple[str, int, bytes]) -> Path:
    """A GGUF file that is only a header."""
    body = b"".join(
        struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + raw
        for key, kind, raw in entries
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body)
    return path


def words(folder: Path, args: LlamaCppArgs) -> list[str]:
    header(folder / "model.gguf", ("llama.context_length", 4, struct.pack("<I", 32768)))
    return LlamaCpp(args).command(folder, "127.0.0.1", 8080, Path("python"))


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


# The command


def test_options_are_llama_servers_own(tmp_path: Path) -> None:
    args = LlamaCppArgs(parallel=3, threads=5, ctx_size=6000, flash_attn="on", cache_type_k="q8_0")
    command = words(tmp_path, args)
    assert command[:2] == ["python", "-I"]
    wanted = {
        "--parallel": "3",
        "--threads": "5",
        "--threads-batch": "5",
        "--ctx-size": "6000",
        "--flash-attn": "on",
    }
    assert {option: value(command, option) for option in wanted} == wanted
    assert "--no-kv-unified" in command


def test_prompts_are_kept_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    assert "--cache-prompt" in words(tmp_path, LlamaCppArgs())
    assert "--no-cache-prompt" in words(tmp_path, LlamaCppArgs(cache_prompt=False))


def test_open_context_is_bounded_and_every_slots_own(tmp_path: Path) -> None:
    assert value(words(tmp_path, LlamaCppArgs(parallel=3)), "--ctx-size") == str(3 * 4096)


def test_a_given_context_with_open_slots_is_shared_by_them(tmp_path: Path) -> None:
    assert "--kv-unified" in words(tmp_path, LlamaCppArgs(ctx_size=6000))


def test_drafts_are_asked_for_with_their_sizes_and_not_by_default(tmp_path: Path) -> None:
    assert "--spec-type" not in words(tmp_path, LlamaCppArgs())
    command = words(tmp_path, LlamaCppArgs(spec_type="ngram-map-k", spec_ngram_size_n=4))
    assert value(command, "--spec-type") == "ngram-map-k"
    assert value(command, "--spec-ngram-map-k-size-n") == "4"
    assert "--spec-ngram-map-k-size-m" not in command


@pytest.mark.parametrize("kind", ["none", "ngram-mod", "ngram-cache"])
def test_sizes_of_drafts_are_refused_where_there_are_none(kind: Any) -> None:
    LlamaCpp(LlamaCppArgs(spec_type=kind)).check()
    with pytest.raises(BadInput, match=f"spec_type {kind} has no spec_ngram_size_n"):
        LlamaCpp(LlamaCppArgs(spec_type=kind, spec_ngram_size_m=8)).check()


def test_an_adapter_beside_the_model_is_applied(tmp_path: Path) -> None:
    assert "--lora" not in words(tmp_path, LlamaCppArgs())
    (tmp_path / "adapter.gguf").touch()
    assert value(words(tmp_path, LlamaCppArgs()), "--lora") == str(tmp_path / "adapter.gguf")


def test_the_native_server_takes_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_native, "tool", lambda name, cache: Path("/opt") / name)
    args = LlamaCppArgs(parallel=3)
    native = words(tmp_path, args.model_copy(update={"build": "native"}))
    assert native[0] == "/opt/llama-server"
    wheel = words(tmp_path, args)
    assert native[1:] == wheel[wheel.index("--model") :]


def test_a_native_server_that_is_not_there_is_said_unless_any_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_native, "tool", lambda name, cache: None)
    with pytest.raises(Unavailable, match="weighbridge engines install llama_cpp --native"):
        words(tmp_path, LlamaCppArgs(build="native"))
    assert words(tmp_path, LlamaCppArgs(build="auto"))[0] == "python"


def test_only_open_options_are_tuned() -> None:
    given = LlamaCppArgs(threads=3, parallel=2)
    assert LlamaCpp(given).tunings(8) == [given]
    assert [args.threads for args in LlamaCpp(LlamaCppArgs()).tunings(2)] == [1, 2]


def test_a_slot_for_each_answer_has_the_context_that_is_asked_for_as_far_as_the_model_goes(
    tmp_path: Path,
) -> None:
    header(tmp_path / "model.gguf", ("llama.context_length", 4, struct.pack("<I", 2048)))
    for tokens, each in ((1024, 1024), (8192, 2048)):
        sized = LlamaCpp(LlamaCppArgs()).sized_for(tmp_path, tokens, 3)
        command = LlamaCpp(sized).command(tmp_path, "127.0.0.1", 8080, Path("python"))
        assert (value(command, "--parallel"), value(command, "--ctx-size")) == ("3", str(3 * each))
        assert "--no-kv-unified" in command


def test_the_trained_context_is_read_past_whatever_comes_before(tmp_path: Path) -> None:
    texts = struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 2) + b"bc"
    path = header(
        tmp_path / "model.gguf",
        ("tokens", 9, texts),
        ("scale", 6, struct.pack("<f", 1.5)),
        ("qwen2.context_length", 4, struct.pack("<I", 777)),
    )
    assert trained_context(path) == 777


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 something else entirely", b"GGUF\x03\x00\x00\x00"]
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a GGUF file"):
        trained_context(path)


# The server


def test_it_answers_in_openais_api(running: Running) -> None:
    client = Client(running.url)
    assert client.models() == ["tiny"]
    answer = client.ask([{"role": "user", "content": "hello"}], max_tokens=5)
    pieces = list(client.stream([{"role": "user", "content": "hello"}], max_tokens=5))
    assert answer.completion_tokens <= 5
    assert "".join(pieces) == answer.text


def test_what_a_request_leaves_open_is_as_weighed_and_its_context_is_a_slots(
    running: Running, gguf: Path
) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}
    greedy = post(f"{running.url}/v1/chat/completions", {**body, "temperature": 0})
    for _ in range(3):
        open_answer = post(f"{running.url}/v1/chat/completions", body)
        assert open_answer["choices"][0]["message"] == greedy["choices"][0]["message"]
    trained = trained_context(gguf / "model.gguf")
    assert LlamaCpp(LlamaCppArgs()).context(running.url) == min(trained, AUTO_CONTEXT)


def test_it_tells_which_part_of_a_prompt_it_had_in_its_cache(running: Running) -> None:
    same = [{"prompt": "The same beginning. " * 8, "max_tokens": 1}] * 8
    figures = run_load(running.url, same, 1)
    assert figures.cached_share
    assert figures.cached_share > 0.5
    uncached = run_load(running.url, [{**one, "cache_prompt": False} for one in same], 1)
    assert uncached.cached_share == 0


def test_threads_that_wait_for_each_other_spin_a_little(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")
    with serve(gguf, LlamaCppArgs(threads=1, parallel=1), MACHINE_CACHE, tmp_path / "log"):
        assert "GOMP_SPINCOUNT = '3000'" in (tmp_path / "log").read_text()


def test_a_prompt_longer_than_the_context_is_refused_with_its_words(running: Running) -> None:
    with pytest.raises(RequestRefused, match="context size"):
        Client(running.url).ask("word " * 3000)


@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"])
def test_its_tokens_are_the_tokenizers(
    text: str, running: Running, transformer: tuple[Any, Any]
) -> None:
    ids = transformer[1](text, add_special_tokens=False)["input_ids"]
    assert LlamaCpp(LlamaCppArgs()).tokenize(running.url, text) == ids


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ending", ["", "<|im_end|>", "<|im_end|>\n<|im_start|>user\nmore"])
def test_log_probabilities_are_those_of_transformers(
    text: str, ending: str, running: Running, transformer: tuple[Any, Any]
) -> None:
    """Whatever the tokens are: ones that end the answer, ones within a character."""
    import torch

    model, tokenizer = transformer
    prompt = tokenizer(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False
    )["input_ids"]
    completion = tokenizer(text + ending, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    expected = [
        float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(completion)
    ]
    engine = LlamaCpp(LlamaCppArgs())
    told = engine.token_distributions(running.url, prompt, completion, 5)
    for known, expected_here in zip(told, logits[len(prompt) - 1 : -1], strict=True):
        assert len(known) >= 5
        assert max(known.values()) == pytest.approx(float(expected_here.max()), abs=0.05)
        assert list(known.values()) == pytest.approx(expected_here[list(known)].tolist(), abs=0.05)
    found = engine.token_logprobs(running.url, prompt, completion)
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    assert sum(differences) / len(differences) < 0.01
    assert max(differences) < 0.05


def test_drafts_change_no_answer_and_no_log_probability(
    gguf: Path, running: Running, tmp_path: Path, transformer: tuple[Any, Any]
) -> None:
    drafting = LlamaCppArgs(
        threads=1, parallel=2, spec_type="ngram-simple", spec_ngram_size_n=1, spec_ngram_size_m=4
    )
    body = {"prompt": "order 7 7 7 7 order 7 7 7 7 order 7 7", "max_tokens": 24, "temperature": 0}
    tokens = transformer[1](str(body["prompt"]), add_special_tokens=False)["input_ids"]
    with serve(gguf, drafting, MACHINE_CACHE, tmp_path / "log") as engine:
        answer = post(f"{engine.url}/v1/completions", body)
        found = LlamaCpp(drafting).token_logprobs(engine.url, tokens[:4], tokens[4:])
    assert answer["timings"]["draft_n"] > 0
    plain = post(f"{running.url}/v1/completions", body)
    assert answer["choices"][0]["text"] == plain["choices"][0]["text"]
    expected = LlamaCpp(LlamaCppArgs()).token_logprobs(running.url, tokens[:4], tokens[4:])
    assert found == pytest.approx(expected, abs=0.01)


def test_a_damaged_file_is_told_with_llama_cpps_own_words(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes((gguf / "model.gguf").read_bytes()[:-100_000])
    with (
        pytest.raises(Unavailable, match="model is corrupted or incomplete"),
        serve(tmp_path, LlamaCppArgs(threads=1, parallel=1), MACHINE_CACHE, tmp_path / "log"),
    ):
        pass
