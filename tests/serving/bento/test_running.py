"""Bentos run by themselves, in nothing but their environment: no process begins here as a copy of
one that has imported anything (tests/warm).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving import bentos
from tests.waiting import soon, until
from weighbridge.core.errors import Unavailable
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process, pod_drain
from weighbridge.serving.bento_process import RunningBento
from weighbridge.serving.openai_client import Client, is_ready


class Served:
    """The exported Bento, run for one test after another until one of them ends it."""

    def __init__(self, start: Callable[[], AbstractContextManager[RunningBento]]) -> None:
        self._start = start
        self._block = contextlib.ExitStack()
        self._proof: RunningBento | None = None

    def running(self) -> RunningBento:
        """The one that runs, once it answers; another where none does."""
        proof = self._proof
        if proof and proof.process.alive():
            return proof
        self.end()
        self._proof = self._block.enter_context(self._start())
        return self._proof

    def end(self) -> None:
        self._block.close()
        self._proof = None


@pytest.fixture(scope="module")
def served(
    contents: bento.Contents,
    shared: Workspace,
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    def start() -> AbstractContextManager[RunningBento]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BENTOML_HOME", str(home / "bentoml"))
            cache = shared.settings.cache
            exported = bento.export(bento.build(contents, cache), contents.model, shared.store, {})
        log = tmp_path_factory.mktemp("served") / "log"
        return as_in_a_pod(bento_process.serve(exported.path, cache, log, 120))

    served = Served(start)
    yield served
    served.end()


@contextlib.contextmanager
def as_in_a_pod(starts: AbstractContextManager[RunningBento]) -> Iterator[RunningBento]:
    """Start a Bento as revision 7 of a target in a cluster."""
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WEIGHBRIDGE_REVISION", "7")
            proof = running.enter_context(starts)
        yield proof


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def ended(processes: list[psutil.Process], within: float = 20) -> bool:
    return soon(
        lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes),
        within,
    )


def test_a_client_that_hangs_up_frees_its_slot(served: Served) -> None:
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 400,
    }
    proof = served.running()
    with httpx.stream("POST", f"{proof.url}/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    time.sleep(0.5)
    metrics = httpx.get(f"{proof.engine_url}/metrics").text
    assert "llamacpp:requests_processing 0" in metrics


def test_exported_it_answers_on_both_ports(served: Served) -> None:
    proof = served.running()
    for url in (proof.url, proof.engine_url):
        assert (
            Client(url).ask([{"role": "user", "content": "Hello"}], max_tokens=5).completion_tokens
            == 5
        )
        assert list(Client(url).stream("Hello", max_tokens=5, ignore_eos=True))
    for path in ("/livez", "/readyz", "/metrics", "/v1/models"):
        assert httpx.get(proof.url + path).status_code == 200
    for path in ("/lora-adapters", "/slots", "/props", "/%6cora-adapters", "/v1/../slots"):
        closed = httpx.get(httpx.URL(proof.url, raw_path=path.encode()))
        assert (closed.status_code, closed.json()["error"]["code"]) == (404, "unknown_url")
    large = httpx.post(f"{proof.url}/v1/chat/completions", content=b"x" * (3 << 20))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    refused = httpx.post(f"{proof.url}/v1/chat/completions", content=b"{")
    assert (
        refused.status_code
        == httpx.post(f"{proof.engine_url}/v1/chat/completions", content=b"{").status_code
    )
    processes = tree(proof.process.pid)
    log = proof.process.log
    length = log.stat().st_size
    served.end()
    assert ended(processes)
    # BentoML would end an engine that has ended already.
    assert b"Traceback" not in log.read_bytes()[length:]


def test_in_a_pod_it_tells_what_is_under_way_and_drains(served: Served) -> None:
    proof = served.running()
    gauge = "weighbridge_requests_in_flight"
    body = json.dumps({"prompt": "Hello", "stream": True, "max_tokens": 30}).encode()
    asked = threading.Event()

    def coming() -> Iterator[bytes]:
        yield body[:10]
        asked.wait(60)
        yield body[10:]

    def client() -> None:
        answers.append(httpx.post(f"{proof.url}/v1/completions", content=coming(), timeout=60))

    answers: list[httpx.Response] = []
    asking = threading.Thread(target=client)
    assert httpx.get(f"{proof.url}/readyz").json() == {"answers": True}
    asking.start()
    until(lambda: httpx.get(f"{proof.url}/requests").json()["in_flight"] == 1)
    assert f"{gauge} 1.0" in httpx.get(f"{proof.url}/metrics").text
    assert not pod_drain.drained(proof.url, least=0, most=0.2)
    asked.set()
    assert pod_drain.drained(proof.url, least=0, most=60)
    asking.join()
    assert answers[0].text.endswith("[DONE]\n\n")
    assert answers[0].headers["X-Weighbridge-Version"] == "7"
    (ended,) = httpx.get(f"{proof.url}/requests?after=0").json()["ended"][-1:]
    assert (ended["status"], ended["stream"], ended["truncated"]) == (200, True, False)
    assert ended["seconds"] > 0.2
    assert f"{gauge} 0.0" in httpx.get(f"{proof.url}/metrics").text
    last = httpx.post(f"{proof.url}/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
    assert (last.status_code, last.headers["connection"]) == (200, "close")


@pytest.mark.parametrize("victim", ["worker", "engine", "launcher"])
def test_nothing_is_orphaned(victim: str, served: Served) -> None:
    processes = tree(served.running().process.pid)
    launcher, worker, engine = processes
    {"engine": engine, "worker": worker, "launcher": launcher}[victim].send_signal(signal.SIGKILL)
    assert ended(processes)
    # One whose last threads still end is a zombie already, and would be taken for one that serves.
    served.end()


def test_an_engine_that_dies_while_loading_is_told_at_once(
    shared: Workspace, tmp_path: Path
) -> None:
    what = bentos.contents(shared, whole=False, name="broken")
    exported = bento.export(bento.build(what, shared.settings.cache), what.model, shared.store, {})
    started = time.monotonic()
    with (
        pytest.raises(Unavailable, match=r"did not start|failed to load"),
        bento_process.serve(exported.path, shared.settings.cache, tmp_path / "log", 300),
    ):
        pass
    assert time.monotonic() - started < 100


def test_any_bentoml_serves_it_by_its_tag(built: bento.Built, tmp_path: Path) -> None:
    """As its README says: also the one beside Weighbridge, whose Python has no engine."""
    from weighbridge.core.processes import Process, free_port

    port = free_port()
    command = [
        str(Path(sys.executable).with_name("bentoml")),
        "serve",
        built.tag,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    env = {"BENTOML_HOME": os.environ["BENTOML_HOME"], "PYTHONPATH": ""}
    with Process("bentoml serve", command, log=tmp_path / "log", cwd=tmp_path, env=env) as process:
        process.wait_until(lambda: is_ready(f"http://127.0.0.1:{port}"), 120)


def test_a_python_without_what_it_needs_is_told_in_one_line(
    built: bento.Built, tmp_path: Path
) -> None:
    """Some Python with BentoML alone: here one to which psutil is hidden."""
    (tmp_path / "psutil.py").write_text("raise ModuleNotFoundError(name='psutil')\n")
    service = "import sys; sys.path.insert(0, sys.argv[1]); import weighbridge.serving.service"
    done = subprocess.run(
        [sys.executable, "-c", service, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(built.folder / "src")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("this Python has no psutil, which the Bento needs: python -m venv ENV")
    assert line.endswith("ENV/bin/bentoml serve")
