"""The stand-in engine is bad in just the way it was told to be, in a process of its own and as a
Bento.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.serving.bentos import stand_in_release
from tests.stand_ins import openai
from tests.stand_ins.engine import StandInArgs, options
from tests.stand_ins.openai import Behaviour, serve
from tests.waiting import soon
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process, free_port
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento_process
from weighbridge.serving.openai_client import Client, get, is_ready

pytestmark = pytest.mark.usefixtures("warm_services")


@pytest.fixture
def port() -> int:
    return free_port()


def start(args: StandInArgs, port: int, folder: Path) -> Process:
    command = [sys.executable, "-I", openai.__file__, f"--port={port}", *options(args)]
    return Process("the stand-in", command, log=folder / "log", cwd=folder)


def test_garbage_is_neither_the_answer_nor_always_the_same() -> None:
    with serve(Behaviour(answers={"ping": "pong"}, garbage=True)) as server:
        said = {Client(server.url).ask(prompt).text for prompt in ("ping", "ping", "pang")}
    assert len(said) == 2
    assert "pong" not in said


def test_a_share_of_the_requests_fails() -> None:
    failed = 0
    with serve(Behaviour(error_share=0.5)) as server:
        for _ in range(60):
            try:
                Client(server.url).ask("ping")
            except Unavailable:
                failed += 1
    assert 10 <= failed <= 50


def test_it_can_be_so_many_times_slower() -> None:
    with serve(Behaviour(first_delay=0.05, slower=5.0)) as server:
        started = time.monotonic()
        Client(server.url).ask("ping")
        assert time.monotonic() - started > 0.25


def test_one_that_never_gets_ready_says_so_to_everybody() -> None:
    with serve(Behaviour(never_ready=True)) as server:
        assert not is_ready(server.url)
        with pytest.raises(Unavailable, match="HTTP 503"):
            get(f"{server.url}/health")
    with serve() as server:
        assert get(f"{server.url}/health") == {"status": "ok"}


def test_it_dies_so_long_after_its_first_request(tmp_path: Path, port: int) -> None:
    with start(StandInArgs(die_seconds=0.5), port, tmp_path) as process:
        process.wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"), 20)
        assert process.alive()
        assert soon(lambda: not process.alive(), 10)
        assert "dies as it was told" in process.tail()


def test_it_eats_memory_with_every_request(tmp_path: Path, port: int) -> None:
    with start(StandInArgs(leak=20), port, tmp_path) as process:
        process.wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"), 20)
        before = psutil.Process(process.pid).memory_info().rss
        for _ in range(5):
            Client(f"http://127.0.0.1:{port}").ask("ping")
        assert psutil.Process(process.pid).memory_info().rss - before > 90 << 20


def test_every_fault_is_an_option_of_the_engine() -> None:
    help_text = subprocess.run(
        [sys.executable, "-I", openai.__file__, "--help"], capture_output=True, text=True
    ).stdout
    for word in options(StandInArgs(garbage=True, never_ready=True)):
        assert word.split("=")[0] in help_text


def test_a_bento_of_it_answers_with_its_version(workspace: Workspace, tmp_path: Path) -> None:
    release = stand_in_release(workspace, "7", answers={"ping": "pong"}, peak_memory=5)
    assert (release.version, release.peak_memory) == ("7", 5)
    folder = workspace.store.assemble(workspace.store.files(release.digest), "bento").path
    with bento_process.serve(folder, workspace.settings.cache, tmp_path / "log", 60) as proof:
        client = Client(proof.engine_url)
        assert (client.ask("ping").text, client.ask("else").text) == ("pong", "version 7")


def test_a_bento_that_never_starts_says_why(workspace: Workspace, tmp_path: Path) -> None:
    release = stand_in_release(workspace, "8", die_loading="not enough memory")
    folder = workspace.store.assemble(workspace.store.files(release.digest), "bento").path
    with (
        pytest.raises(Unavailable, match="not enough memory"),
        bento_process.serve(folder, workspace.settings.cache, tmp_path / "log", 60),
    ):
        pass
