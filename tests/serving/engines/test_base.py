"""What every engine shares: which lock it runs from."""

from pathlib import Path

import pytest

from tests.stand_ins.engine import StandInArgs, StandInEngine
from weighbridge.core import plugins
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.engines.base import Engine, engine_class
from weighbridge.serving.engines.onnx import Onnx


def test_the_environment_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        StandInEngine, "locks", {"cpu": Path("slow.lock"), "cuda": Path("fast.lock")}
    )
    monkeypatch.setattr(StandInEngine, "device", lambda self: "cuda")
    assert StandInEngine(StandInArgs()).lock() == Path("fast.lock")


def test_a_device_the_engine_has_no_environment_for_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StandInEngine, "device", lambda self: "tpu")
    with pytest.raises(
        Unavailable, match="choosing the environment of stand_in: it has none for tpu; known: cpu"
    ):
        StandInEngine(StandInArgs()).lock()


@pytest.mark.parametrize("name", plugins.BUILT_IN["engine"])
def test_every_lock_of_an_engine_lies_in_the_tree(name: str) -> None:
    locks = engine_class(name).locks
    assert all(lock.is_file() for lock in locks.values()), locks


@pytest.mark.parametrize("name", plugins.BUILT_IN["engine"])
def test_options_that_change_the_numbers_are_said_to_so_that_quality_is_measured_under_each(
    name: str,
) -> None:
    engine = engine_class(name)
    options = set(engine.Args.model_fields)
    assert engine.numerics <= options
    formats = ("dtype", "quantiz", "cache_type")
    assert {one for one in options if any(part in one for part in formats)} <= engine.numerics


def test_what_is_registered_and_no_engine_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "wrong", f"{__name__}:Path")  # type: ignore[index]
    with pytest.raises(BadInput, match=r"loading engine 'wrong': .*Path.* is no class derived"):
        engine_class("wrong")


def test_an_engine_that_opens_what_is_no_operation_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Onnx, "operations", Engine.operations | {"/v1/rerank"})
    with pytest.raises(BadInput, match="loading engine 'onnx': it declares the operation '/v1"):
        engine_class("onnx")


def test_an_engine_that_writes_only_its_command_has_the_defaults() -> None:
    class Plain(Engine[StandInArgs]):
        name = "plain"

        def command(self, model: Path, host: str, port: int, python: Path) -> list[str]:
            return ["plain"]

    engine = Plain(StandInArgs())
    engine.check()
    assert (engine.device(), engine.env(), engine.reason("log")) == ("cpu", {}, None)
    assert engine.tunings(8) == [engine.args]
    assert (engine.health, engine.packages) == ("/health", ())
    assert "POST /v1/chat/completions" in engine.operations
    for ask in (
        lambda: engine.tokenize("http://127.0.0.1:1", "x"),
        lambda: engine.chat_tokens("http://127.0.0.1:1", []),
        lambda: engine.token_logprobs("http://127.0.0.1:1", [1], [2]),
        lambda: engine.token_distributions("http://127.0.0.1:1", [1], [2], 5),
    ):
        with pytest.raises(NotImplementedError, match="plain"):
            ask()


@pytest.mark.parametrize("name", ["llama_cpp", "vllm", "onnx", "triton", "tvm", "transformers"])
def test_a_model_is_called_as_it_is_told_unless_the_recipe_names_it(name: str) -> None:
    plugin = engine_class(name)
    named = plugin(plugin(plugin.Args(kind=name)).called("shop"))
    assert "shop" in named.model_names()
    assert "model" not in named.model_names()
    again = plugin(named.called("another"))
    assert again.model_names() == named.model_names(), "the recipe's own word"


def test_an_engine_without_a_word_on_it_is_called_anything() -> None:
    engine = StandInEngine(StandInArgs())
    assert engine.called("shop") == engine.args
    assert engine.model_names() == frozenset()


@pytest.mark.parametrize("name", plugins.BUILT_IN["engine"])
def test_an_engine_that_keeps_its_sampling_is_started_with_it(name: str, tmp_path: Path) -> None:
    plugin = engine_class(name)
    if not plugin.keeps_sampling:
        # The last of them serves nothing.
        assert name in ("tgi", "sglang", "tensorrt_llm", "triton_vllm", "replay")
        return
    (tmp_path / "model.gguf").touch()
    # Where nobody says, it is read from the model.
    context = {"ctx_size": 512} if "ctx_size" in plugin.Args.model_fields else {}
    options = {"kind": name, "temperature": 0.37, "top_p": 0.73, **context}
    engine = plugin(plugin.Args.model_validate(options))
    command = " ".join(engine.command(tmp_path, "127.0.0.1", 8000, Path("python")))
    assert "0.37" in command
    assert "0.73" in command
