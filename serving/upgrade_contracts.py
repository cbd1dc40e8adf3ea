"""What serving needs of its libraries and engines, done once: `weighbridge compat` runs these
against newer releases.

Each needs `WEIGHBRIDGE_HOME` to be a folder of its own.
"""

import os
import sys
import time
from pathlib import Path

from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.serving import bento, bento_process
from weighbridge.serving.engine_process import serve
from weighbridge.serving.engines.base import Engine, engine_class
from weighbridge.serving.openai_client import Client
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor

MODELS = "WEIGHBRIDGE_COMPAT_MODELS"
PATIENCE = 60.0


def a_program_is_supervised() -> None:
    """supervisord starts, takes a program while it runs, and ends with it."""
    home = Settings().home
    supervisor = Supervisor(home)
    supervisor.ensure()
    try:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        supervisor.add(Program("contract", command, log=home / "contract.log", directory=home))
        deadline = time.monotonic() + PATIENCE
        while (state := supervisor.state("contract")) is None or not state.pid:
            assert time.monotonic() < deadline, f"the program is {state}"
            time.sleep(0.1)
        supervisor.remove("contract")
        assert supervisor.state("contract") is None, "the program is still known"
    finally:
        supervisor.shutdown()


def an_engine_answers(name: str) -> None:
    """The engine takes our command line, loads a model and answers: at once, streamed, token by
    token.
    """
    plugin = engine_class(name)
    engine = plugin(plugin.Args(kind=name))
    settings = Settings()
    model = Path(os.environ[MODELS]) / name
    with serve(model, engine.args, settings.cache, settings.home / "engine.log") as running:
        client = Client(running.url)
        messages = [{"role": "user", "content": "Order 12 is late."}]
        answer = client.ask(messages, max_tokens=8)
        assert answer.completion_tokens > 0, f"the answer is {answer}"
        assert answer.prompt_tokens > 0, f"the answer is {answer}"
        streamed = "".join(client.stream(messages, max_tokens=8))
        assert streamed == answer.text, (
            f"{streamed!r} is streamed, {answer.text!r} is given at once"
        )
        tokens = engine.tokenize(running.url, "Order 12 is late.")
        assert tokens, "a text has no tokens"
        _logprobs_are_told(engine, running.url, tokens)


def a_bento_answers(name: str) -> None:
    """BentoML builds a Bento of the engine and serves it: clients are answered at both of its
    ports.
    """
    engine = engine_class(name)
    settings = Settings()
    store = Store(settings.home / "store")
    form = "safetensors" if "safetensors" in engine.formats else min(engine.formats)
    model = store.add(Path(os.environ[MODELS]) / name, form, adopt=False)
    contents = bento.Contents("contract", "1", name, engine.Args(kind=name), model, {})
    exported = bento.export(bento.build(contents, settings.cache), model, store, {})
    with bento_process.serve(
        exported.path, settings.cache, settings.home / "bento.log", contents.engine.start_timeout
    ) as proof:
        for url in (proof.url, proof.engine_url):
            answer = Client(url).ask(
                [{"role": "user", "content": "Order 12 is late."}], max_tokens=4
            )
            assert answer.completion_tokens > 0, f"the answer is {answer}"


def _logprobs_are_told(engine: Engine, url: str, tokens: list[int]) -> None:
    try:
        told = engine.token_logprobs(url, tokens[:-2], tokens[-2:])
    except NotImplementedError:
        return  # its API cannot tell, and the engine says so
    assert len(told) == 2, f"{len(told)} log-probabilities of 2 tokens"
    assert max(told) <= 0, f"the log-probabilities are {told}"
