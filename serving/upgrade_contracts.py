"""What serving needs of its libraries and engines, done once: `weighbridge compat` runs these
against newer releases.

A contract's name says what must hold. Each needs `WEIGHBRIDGE_HOME` to be a folder of its own.
"""

import os
import sys
import time
from pathlib import Path

from weighbridge.core.formatting import quoted
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
    """Start supervisord, give it a program while it runs, and end both."""
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
    """Start an engine with our command line and have it answer: at once, streamed, and with
    log-probabilities.
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
            f"{quoted(streamed)} is streamed, {quoted(answer.text)} is given at once"
        )
        tokens = engine.tokenize(running.url, "Order 12 is late.")
        assert tokens, "a text has no tokens"
        _check_logprobs(engine, running.url, tokens)


def a_bento_answers(name: str) -> None:
    """Have BentoML build a Bento of the engine and serve it: it answers at both of its ports."""
    engine = engine_class(name)
    settings = Settings()
    store = Store(settings.home / "store")
    # Any would do: the smallest is the same one at every call.
    artifact_format = "safetensors" if "safetensors" in engine.formats else min(engine.formats)
    model = store.add(Path(os.environ[MODELS]) / name, artifact_format, adopt=False)
    contents = bento.Contents("contract", "1", name, engine.Args(kind=name), model, {})
    exported = bento.export(bento.build(contents, settings.cache), model, store, {})
    with bento_process.serve(
        exported.path, settings.cache, settings.home / "bento.log", contents.engine.start_timeout
    ) as running:
        for url in (running.url, running.engine_url):
            answer = Client(url).ask(
                [{"role": "user", "content": "Order 12 is late."}], max_tokens=4
            )
            assert answer.completion_tokens > 0, f"the answer is {answer}"


def _check_logprobs(engine: Engine, url: str, tokens: list[int]) -> None:
    try:
        logprobs = engine.token_logprobs(url, tokens[:-2], tokens[-2:])
    except NotImplementedError:
        return  # its API cannot tell, and the engine says so
    assert len(logprobs) == 2, f"{len(logprobs)} log-probabilities of 2 tokens"
    assert max(logprobs) <= 0, f"the log-probabilities are {logprobs}"
