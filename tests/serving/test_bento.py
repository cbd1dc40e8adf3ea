"""Bentos: what is in them, and that they run by themselves, in nothing but their environment: no
process begins here as a copy of one that has imported anything (tests/warm).
"""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving import bentos
from tests.waiting import soon, until
from weighbridge.core.artifact import Artifact
from weighbridge.core.environments import Environment, uv
from weighbridge.core.errors import Unavailable
from weighbridge.core.paths import PACKAGE
from weighbridge.core.plugins import BUILT_IN
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process, pod_drain
from weighbridge.serving.bento_process import RunningBento
from weighbridge.serving.openai_client import Client, is_ready


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bento")


@pytest.fixture(autouse=True)
def _bentoml_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(home / "bentoml"))


@pytest.fixture(scope="module")
def shared(home: Path) -> Workspace:
    return Workspace(Settings(home=home / "home"))


@pytest.fixture(scope="module")
def contents(shared: Workspace) -> bento.Contents:
    return bentos.contents(shared)


@pytest.fixture
def built(contents: bento.Contents, shared: Workspace) -> bento.Built:
    return bento.build(contents, shared.settings.cache)


@pytest.fixture
def exported(built: bento.Built, contents: bento.Contents, shared: Workspace) -> Artifact:
    return bento.export(built, contents.model, shared.store, {})


@pytest.fixture
def environment(exported: Artifact, shared: Workspace) -> Environment:
    return bento_process.environment_of(exported.path, shared.settings.cache)


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


def test_carries_serving_core_and_the_public_interface_and_nothing_else_of_ours(
    built: bento.Built,
) -> None:
    packages = {path.name for path in (built.folder / "src").iterdir() if path.is_dir()}
    assert packages == {"weighbridge", "environment"}
    assert {path.name for path in (built.folder / "src" / "weighbridge").iterdir()} == {
        "__init__.py",
        "core",
        "plugins",
        "serving",
    }


def test_of_our_code_all_that_the_service_imports_travels_and_nothing_more(
    built: bento.Built,
) -> None:
    src = built.folder / "src" / "weighbridge"
    travels = {path.relative_to(src).as_posix() for path in src.rglob("*.py")}
    needed = {
        "serving/service.py",
        # The service starts the one by its path, and Kubernetes the other as it ends the service.
        "serving/reaper.py",
        "serving/pod_drain.py",
        *(path.relative_to(src).as_posix() for path in src.glob("serving/engines/*.py")),
    }
    unread = list(needed)
    while unread:
        new = set(imported_by(unread.pop())) - needed
        needed |= new
        unread += new
    # The package's own file lies elsewhere in a checkout than in a Bento, and imports nothing.
    # Engines of other packages import from `plugins`, which imports a name once it is asked for.
    assert travels == {"__init__.py", "plugins/__init__.py", "plugins/shim.py", *needed}


def imported_by(file: str) -> Iterator[str]:
    """Our own files that a file of ours imports, be it late, and the packages they lie in."""
    packages = [parent / "__init__.py" for parent in Path(file).parents if parent.name]
    yield from (package.as_posix() for package in packages)
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        candidates = [f"{name.removeprefix('weighbridge.').replace('.', '/')}.py" for name in names]
        yield from (path for path in candidates if (PACKAGE / path).exists())


def test_the_service_and_every_engine_are_imported_by_the_bentos_own_python(
    built: bento.Built, environment: Environment
) -> None:
    """With all that they import. Scripts that another engine's environment runs by path travel,
    too, and may not.
    """
    names = [
        "weighbridge.serving.service",
        *{path.partition(":")[0] for path in BUILT_IN["engine"].values()},
    ]
    script = (
        "import importlib, sys; sys.path.insert(0, '.'); "
        "[importlib.import_module(name) for name in sys.argv[1:]]"
    )
    command = [str(environment.python), "-I", "-c", script, *names]
    finished = subprocess.run(
        command, cwd=built.folder / "src", capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_it_is_built_where_no_uv_is_on_the_path(
    shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not bento.build(bentos.contents(shared, name="pathless"), shared.settings.cache).reused


def test_model_is_the_stores_own_file(built: bento.Built, contents: bento.Contents) -> None:
    assert (built.model / "model.gguf").samefile(contents.model.path / "model.gguf")


def test_requirements_are_the_engines_lock_with_its_hashes(
    built: bento.Built, contents: bento.Contents
) -> None:
    requirements = built.folder / "env" / "python" / "requirements.txt"
    assert requirements.read_text() == contents.lock.read_text()


def test_uv_adds_nothing_to_the_requirements_of_a_bento(built: bento.Built, tmp_path: Path) -> None:
    folder = shutil.copytree(built.folder / "env" / "python", tmp_path / "python")
    (folder / "requirements.txt").write_text("anyio\n")
    command = [
        uv(),
        "--directory",
        str(folder),
        "pip",
        "install",
        "--target",
        str(tmp_path),
        "--dry-run",
    ]
    finished = subprocess.run(
        [*command, "-r", "requirements.txt"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert re.findall(r"^ \+ (\w+)==", finished.stderr, re.MULTILINE) == ["anyio"], finished.stderr


def test_built_again_it_is_reused(
    built: bento.Built, contents: bento.Contents, shared: Workspace
) -> None:
    again = bento.build(contents, shared.settings.cache)
    assert again == replace(built, reused=True)


def test_other_lineage_is_another_version(contents: bento.Contents) -> None:
    other = replace(contents, lineage={"recipe": "another"})
    assert other.tag != contents.tag
    assert other.model_version == contents.model_version


def test_names_that_bentoml_refuses_are_made_fit(contents: bento.Contents) -> None:
    assert replace(contents, name="Team A/Größe").bento_name == "team-a-gr-e"


def test_a_build_that_fails_leaves_nothing_behind(
    contents: bento.Contents, shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.setattr(bento, "BUILDER", tmp_path / "missing.py")
    with pytest.raises(Unavailable, match="building Bento"):
        bento.build(contents, shared.settings.cache)
    assert bentos.files(tmp_path / "bentoml") <= {"tmp/weighbridge-demo.lock"}


def test_half_a_bento_of_somebody_killed_and_a_damaged_model_are_replaced(
    contents: bento.Contents, shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    (bento.folder_of(contents.tag) / "src").mkdir(parents=True)
    model = tmp_path / "bentoml" / "models" / contents.bento_name / contents.model_version
    model.mkdir(parents=True)
    (model / "model.yaml").touch()
    (model / "model.gguf").write_bytes(b"damaged")
    built = bento.build(contents, shared.settings.cache)
    assert (built.folder / "bento.yaml").exists()
    assert bento.digest_of_model(built.model) == contents.model.digest


def test_bentoml_lists_it_with_its_lineage(built: bento.Built, environment: Environment) -> None:
    command = [str(environment.bin("bentoml")), "list", "--output", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert built.tag in {entry["tag"] for entry in listed}
    assert json.loads((built.folder / "src" / "lineage.json").read_text()) == {"recipe": "test"}
    assert "recipe: test" in (built.folder / "bento.yaml").read_text()


def test_its_environment_holds_none_of_the_control_plane(environment: Environment) -> None:
    installed = {
        path.name.split("-")[0]
        for path in environment.path.glob("lib/python*/site-packages/*.dist-info")
    }
    assert "bentoml" in installed
    assert installed.isdisjoint({"prefect", "mlflow", "torch", "transformers", "weighbridge"})


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
