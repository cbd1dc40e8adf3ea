"""Engines that are a program on the PATH: options under their own names, and servers that speak as
documented.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import MACHINE_CACHE
from tests.stand_ins import engine, tgi
from tests.stand_ins.http_server import Handler, Server
from weighbridge.core import plugins
from weighbridge.core.errors import Unavailable
from weighbridge.serving.engine_process import Running, serve
from weighbridge.serving.engines import on_path
from weighbridge.serving.engines.on_path import OnPath, OnPathArgs, Sglang, TensorrtLlm, Tgi
from weighbridge.serving.openai_client import Client, RequestRefused, get


def program(folder: Path, name: str, script: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable} -I\n{script}")
    (folder / name).chmod(0o755)


@pytest.fixture
def on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH with programs of the right names."""
    for row in on_path.ROWS:
        program(tmp_path / "bin", row.program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def engine_of(plugin: type[OnPath], **options: Any) -> OnPath:
    args = plugin.Args.model_validate({"kind": plugin.name, **options})
    assert isinstance(args, OnPathArgs)
    return plugin(args)


def words(plugin: type[OnPath], **options: Any) -> list[str]:
    engine = engine_of(plugin, **options)
    return engine.command(Path("/models/one"), "127.0.0.1", 8000, Path("python"))


# The commands


def test_tgis_command_is_its_launchers(on_the_path: Path) -> None:
    command = words(
        Tgi, num_shard=2, max_total_tokens=1024, cuda_memory_fraction=0.8, dtype="bfloat16"
    )
    assert command[0] == str(on_the_path / "text-generation-launcher")
    given = tgi.parse(command[1:])
    assert (given.model_id, given.hostname, given.port, given.usage_stats) == (
        "/models/one",
        "127.0.0.1",
        "8000",
        "off",
    )
    assert (given.num_shard, given.max_total_tokens, given.cuda_memory_fraction) == (
        "2",
        "1024",
        "0.8",
    )
    assert given.quantize is None


def test_tgis_options_are_all_its_launchers_own() -> None:
    assert {name.replace("_", "-") for name in Tgi.row.options} <= set(tgi.OPTIONS)


def test_sglangs_command_serves_a_folder(on_the_path: Path) -> None:
    command = words(Sglang, tp_size=2, mem_fraction_static=0.7, disable_radix_cache=True)
    assert command[:4] == [str(on_the_path / "sglang"), "serve", "--model-path", "/models/one"]
    text = " ".join(command)
    assert "--tp-size 2 --mem-fraction-static 0.7" in text
    assert "--served-model-name model" in text
    assert "--disable-radix-cache" in command
    assert "--disable-radix-cache" not in words(Sglang)
    assert "False" not in text
    assert "None" not in text


def test_tensorrt_llm_writes_its_flags_with_underscores(on_the_path: Path) -> None:
    command = words(TensorrtLlm, max_batch_size=8, kv_cache_free_gpu_memory_fraction=0.5)
    assert command[:3] == [str(on_the_path / "trtllm-serve"), "serve", "/models/one"]
    assert " ".join(command[3:]) == (
        "--host 127.0.0.1 --port 8000 --max_batch_size 8 --kv_cache_free_gpu_memory_fraction 0.5"
    )


@pytest.mark.parametrize("name", [row.name for row in on_path.ROWS])
def test_a_program_that_is_missing_is_told_with_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    row = next(row for row in on_path.ROWS if row.name == name)
    with pytest.raises(Unavailable) as caught:
        words(plugins.load("engine", name))
    assert (
        str(caught.value)
        == f"starting {name}: there is no {row.program} on the PATH; {row.install}"
    )


def test_a_program_elsewhere_can_be_named(tmp_path: Path) -> None:
    program(tmp_path / "own", "launcher")
    assert words(Tgi, program=str(tmp_path / "own" / "launcher"))[0] == str(
        tmp_path / "own" / "launcher"
    )


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match="no option 'tensor_size'"):
        engine_of(Sglang, tensor_size=2)
    with pytest.raises(ValidationError, match="did you mean 'max_input_tokens'"):
        engine_of(Tgi, max_input_token=2)


def test_what_an_api_cannot_tell_is_said() -> None:
    with pytest.raises(NotImplementedError, match="tgi tells no log-probabilities"):
        engine_of(Tgi).token_logprobs("http://127.0.0.1:1", [1], [2])
    with pytest.raises(NotImplementedError, match="tensorrt_llm has no route"):
        engine_of(TensorrtLlm).tokenize("http://127.0.0.1:1", "x")


# TGI's contract, over a server that speaks its documented API


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    program(
        tmp_path / "bin",
        "text-generation-launcher",
        Path(tgi.__file__).read_text().replace("__file__", repr(tgi.__file__)),
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(Tgi, "locks", {"cuda": engine.StandInEngine.locks["cpu"]})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    limits = {"max_input_tokens": 20, "max_total_tokens": 40, "max_concurrent_requests": 3}
    args = engine_of(Tgi, **limits).args
    with serve(tmp_path / "model", args, MACHINE_CACHE, tmp_path / "log") as started:
        yield started


def test_tgi_answers_tells_its_limits_and_its_tokens(running: Running) -> None:
    client, chat = Client(running.url), [{"role": "user", "content": "hello there"}]
    answer = client.ask(chat, max_tokens=3)
    assert (answer.text, answer.completion_tokens, answer.finish_reason) == (
        "one two three",
        3,
        "length",
    )
    assert "".join(client.stream(chat, max_tokens=3)) == answer.text
    limits = get(f"{running.url}/info")
    assert (limits["max_input_tokens"], limits["max_total_tokens"]) == (20, 40)
    assert limits["max_concurrent_requests"] == 3
    assert engine_of(Tgi).tokenize(running.url, "a token each") == [101, 105, 104]
    with pytest.raises(
        RequestRefused, match=r"HTTP 422: Input validation error: `inputs` must have less than 20"
    ):
        client.ask("word " * 30)


def test_tgi_that_does_not_start_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path / "bin",
        "text-generation-launcher",
        "import sys; sys.exit('Error: ShardCannotStart')",
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(Tgi, "locks", {"cuda": engine.StandInEngine.locks["cpu"]})
    with (
        pytest.raises(
            Unavailable,
            match=r"starting tgi: it ended with status 1 before it was ready.*\nError: Shard",
        ),
        serve(tmp_path, engine_of(Tgi).args, MACHINE_CACHE, tmp_path / "log"),
    ):
        pass


# SGLang's own routes


class SglangHandler(Handler):
    """`/tokenize` and `/generate` in SGLang's form: each token with a log-probability of minus its
    id.
    """

    def do_GET(self) -> None:
        self.answer_json({"data": [{"id": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        if self.path == "/tokenize":
            assert body["add_special_tokens"] is False
            self.answer_json(
                {
                    "tokens": [len(word) for word in body["prompt"].split()],
                    "count": 0,
                    "max_model_len": 9,
                }
            )
            return
        assert self.path == "/generate"
        assert body["return_logprob"] is True
        seen = [
            [None if place == 0 else -token, token, None]
            for place, token in enumerate(body["input_ids"])
        ]
        self.answer_json(
            {
                "text": "x",
                "meta_info": {
                    "input_token_logprobs": seen[:-1] if 13 in body["input_ids"] else seen
                },
            }
        )


@pytest.fixture
def url() -> Iterator[str]:
    with Server(SglangHandler) as server:
        yield server.url


def test_sglang_tells_log_probabilities_and_tokens(url: str) -> None:
    assert engine_of(Sglang).token_logprobs(url, [1, 2, 3], [4, 5]) == [-4.0, -5.0]
    assert engine_of(Sglang).tokenize(url, "one three") == [3, 5]
    with pytest.raises(Unavailable, match="told of 2 tokens, not of the 3"):
        engine_of(Sglang).token_logprobs(url, [1, 2], [13])
