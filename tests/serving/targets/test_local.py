"""Target `local`: versions are programs of supervisord, haproxy shares requests out among them."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving.bentos import stand_in_release
from tests.waiting import until
from weighbridge.core.environments import Environment
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port, is_taken
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store, link_or_copy
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento
from weighbridge.serving.bento_candidate import BentoCandidate
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.supervised_program import ProgramState
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.targets.base import Release, Share
from weighbridge.serving.targets.local import Local, LocalArgs, LocalRevision

pytestmark = pytest.mark.usefixtures("warm_services")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """One home for the module: Bentos are built once; every test has a target of its own."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder / "bentoml"))
        yield Workspace(Settings(home=folder / "home"))
    Supervisor(folder / "home").shutdown()


@pytest.fixture(scope="module")
def releases(shared: Workspace) -> dict[str, Release]:
    good = {version: stand_in_release(shared, version) for version in "78"}
    return {**good, "broken": stand_in_release(shared, "9", die_loading="no such tensor")}


@pytest.fixture
def home(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = shared.settings.home
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(home))
    monkeypatch.setenv("BENTOML_HOME", str(home.parent / "bentoml"))
    return home


@pytest.fixture
def args() -> LocalArgs:
    return LocalArgs(port=free_port(), stop_seconds=10)


@pytest.fixture
def target(args: LocalArgs, home: Path) -> Iterator[Local]:
    target = Local(f"target{args.port}", args, home)
    yield target
    for revision in target.running():
        target.stop_named(revision)
    Gateway(home).remove(target.name)


def started(target: Local, release: Release) -> LocalRevision:
    revision = target.prepare(release, target.running())
    target.start(revision)
    until(lambda: target.answers(revision), 60)
    return revision


def served_by(target: Local, **headers: str) -> str:
    answer = httpx.get(f"{target.address}/v1/models", headers=headers, trust_env=False)
    return answer.headers["x-weighbridge-version"] if answer.is_success else str(answer.status_code)


def test_two_versions_share_the_requests_of_one_address(
    target: Local, releases: dict[str, Release]
) -> None:
    seven, eight = (started(target, releases[version]) for version in "78")
    shares = [Share(revision=seven, weight=50), Share(revision=eight, weight=50)]
    target.route(shares)
    assert target.is_routed(shares)
    assert {served_by(target) for _ in range(40)} == {"7", "8"}
    target.route([Share(revision=seven, weight=100), Share(revision=eight, weight=0)])
    assert not target.is_routed(shares)
    assert {served_by(target) for _ in range(20)} == {"7"}
    assert served_by(target, **{"X-Weighbridge-Version": "8"}) == "8"
    traffic = target.traffic()
    served_by(target)
    until(lambda: [seen.server for seen in traffic.read()] == ["7"], 10)


def test_a_version_started_beside_itself_has_another_name(
    target: Local, releases: dict[str, Release]
) -> None:
    first = started(target, releases["7"])
    second = target.prepare(releases["7"], {"7"})
    assert (first.name, second.name) == ("7", "7.2")
    assert target.running() == {"7"}


def test_a_version_that_dies_while_it_loads_is_told_with_its_log(
    target: Local, releases: dict[str, Release]
) -> None:
    revision = target.prepare(releases["broken"], ())
    liveness = target.start(revision)
    with pytest.raises(Unavailable, match=r"(?s)it ended\. Its log ends:.*no such tensor"):
        until(liveness.check, 60)


def _is_another(state: ProgramState | None, pid: int) -> bool:
    return state is not None and state.pid not in (0, pid)


def test_one_that_died_is_told_even_when_it_is_up_again(
    target: Local, releases: dict[str, Release], home: Path
) -> None:
    revision = target.prepare(releases["7"], ())
    liveness = target.start(revision)
    until(lambda: target.answers(revision), 60)
    liveness.check()
    assert liveness.memory() > 10 << 20
    state = Supervisor(home).state(revision.program)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    # Its engine answers until its reaper has seen that.
    until(lambda: _is_another(Supervisor(home).state(revision.program), state.pid), 60)
    until(lambda: target.answers(revision), 60)
    with pytest.raises(Unavailable, match="it ended"):
        liveness.check()


def test_killed_it_comes_back_at_the_same_address(
    target: Local, releases: dict[str, Release], home: Path
) -> None:
    revision = started(target, releases["7"])
    target.route([Share(revision=revision)])
    state = Supervisor(home).state(revision.program)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: served_by(target) == "7", 60)


def test_stopped_it_leaves_no_process(
    target: Local, releases: dict[str, Release], home: Path
) -> None:
    revision = started(target, releases["7"])
    state = Supervisor(home).state(revision.program)
    assert state is not None
    family = [psutil.Process(state.pid), *psutil.Process(state.pid).children(recursive=True)]
    target.stop(revision)
    assert not target.is_healthy(revision)
    assert not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family
    )
    assert not is_taken(revision.port)


def test_a_port_of_somebody_elses_is_refused(target: Local, home: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port}.*taken"):
            Local(target.name, LocalArgs(port=port), home).route([])
    assert all(front.target != target.name for front in Gateway(home).fronts())


def test_a_bento_that_is_nowhere_is_told(target: Local) -> None:
    release = Release(name="demo", version="1", bento="demo:gone", digest="sha256:" + "0" * 64)
    assert not target.has(release)
    with pytest.raises(Unavailable, match="is not on this machine"):
        target.prepare(release, ())


@pytest.mark.parametrize("dated", [True, False])
@pytest.mark.parametrize("exported", [True, False])
def test_a_bento_whose_weights_are_damaged_never_serves(
    target: Local, home: Path, tmp_path: Path, exported: bool, dated: bool
) -> None:
    """The exported Bento and BentoML's own store hold links to one file of weights.

    Where its date does not tell, a look costs no reading; a start does.
    """
    store = Store(home / "store")
    write(tmp_path / "model" / "model.gguf", "weights")
    model = store.add(tmp_path / "model", "gguf")
    tag, inside = f"damaged:{model.short}", f"models/damaged/{model.short}"
    candidate = BentoCandidate(
        name="damaged", label="", engine={"kind": "llama_cpp"}, model=tag, lock="environment/x.lock"
    )
    kept = bento.folder_of(tag)
    write(kept / "bento.yaml", "name: damaged")
    write(kept / "src" / "candidate.json", candidate.model_dump_json())
    in_bentoml = bento.bentoml_home() / inside
    write(in_bentoml / "model.yaml", "name: damaged")
    link_or_copy(model.path / "model.gguf", in_bentoml / "model.gguf")
    digest = "sha256:" + "0" * 64
    if exported:
        shutil.copytree(kept, tmp_path / "out")
        shutil.copytree(in_bentoml, tmp_path / "out" / inside)
        digest = store.add(tmp_path / "out", "bento").digest
    release = Release(name="demo", version="1", bento=tag, digest=digest)
    assert target.has(release)
    revision = LocalRevision(
        name="1",
        release=release,
        url="",
        program="",
        folder=kept,
        environment=kept,
        port=1,
        management_port=2,
        stop_seconds=1,
        health="/health",
    )

    weights = model.path / "model.gguf"
    status = weights.stat()
    weights.chmod(0o644)
    weights.write_text("WEIGHTS")
    if not dated:
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert target.has(release) is not dated
    for serve in (lambda: target.start(revision), lambda: target.prepare(release, ())):
        with pytest.raises(Unavailable, match="is damaged; run the recipe again to package it"):
            serve()


@pytest.mark.parametrize(("kind", "port"), [("tgi", 2), ("llama_cpp", 1)])
def test_where_an_engine_keeps_no_sampling_clients_go_by_bentomls_port(
    target: Local, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, port: int
) -> None:
    local, ports = "weighbridge.serving.targets.local", iter((1, 2))
    candidate = BentoCandidate(
        name="demo", label="one", model="demo:1", lock="lock", engine={"kind": kind}
    )
    monkeypatch.setattr(f"{local}.bento_folder", lambda *_: tmp_path)
    monkeypatch.setattr(f"{local}.free_port", lambda: next(ports))
    monkeypatch.setattr(f"{local}.bento_process.candidate_of", lambda _: candidate)
    monkeypatch.setattr(
        f"{local}.bento_process.environment_of", lambda *_: Environment(kind, tmp_path)
    )
    release = Release(name="demo", version="1", bento="demo:1", digest="sha256:x")
    revision = target.prepare(release, ())
    [route] = target._front([Share(revision=revision, weight=100)]).routes
    assert (route.port, revision.url) == (port, "http://127.0.0.1:1")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
