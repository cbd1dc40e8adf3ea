"""Target `local`: versions are programs of supervisord, haproxy shares the requests out among them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serving.bentos import stand_in_release
from tests.waiting import until
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import free_port, is_taken
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.models import Front
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.targets.base import Release, Share
from weighbridge.serving.targets.local import Local, LocalArgs, LocalRevision

LOCAL = Local()


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
    made = {version: stand_in_release(shared, version) for version in "78"}
    return {**made, "broken": stand_in_release(shared, "9", die_loading="no such tensor")}


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
def target(args: LocalArgs, home: Path) -> Iterator[str]:
    name = f"target{args.port}"
    yield name
    for revision in LOCAL.running(name, home):
        LOCAL.stop_named(name, revision, home)
    Gateway(home).remove(name)


def started(target: str, args: LocalArgs, release: Release, home: Path) -> LocalRevision:
    revision = LOCAL.prepare(target, args, release, LOCAL.running(target, home), home)
    LOCAL.start(revision, home)
    until(lambda: LOCAL.answers(revision), 60)
    return revision


def served_by(args: LocalArgs, **headers: str) -> str:
    answer = httpx.get(f"{LOCAL.address(args)}/v1/models", headers=headers, trust_env=False)
    return answer.headers["x-weighbridge-version"] if answer.is_success else str(answer.status_code)


def test_two_versions_share_the_requests_of_one_address(
    target: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    seven, eight = (started(target, args, releases[version], home) for version in "78")
    shares = [Share(revision=seven, weight=50), Share(revision=eight, weight=50)]
    LOCAL.route(target, args, shares, home)
    assert LOCAL.routed(target, args, shares, home)
    assert {served_by(args) for _ in range(40)} == {"7", "8"}
    LOCAL.route(
        target, args, [Share(revision=seven, weight=100), Share(revision=eight, weight=0)], home
    )
    assert not LOCAL.routed(target, args, shares, home)
    assert {served_by(args) for _ in range(20)} == {"7"}
    assert served_by(args, **{"X-Weighbridge-Version": "8"}) == "8"
    traffic = LOCAL.traffic(target, home)
    served_by(args)
    until(lambda: [seen.server for seen in traffic.read()] == ["7"], 10)


def test_a_version_started_beside_itself_has_another_name(
    target: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    first = started(target, args, releases["7"], home)
    second = LOCAL.prepare(target, args, releases["7"], {"7"}, home)
    assert (first.name, second.name) == ("7", "7.2")
    assert LOCAL.running(target, home) == {"7"}


def test_a_version_that_dies_while_it_loads_is_told_with_its_log(
    target: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    revision = LOCAL.prepare(target, args, releases["broken"], (), home)
    pulse = LOCAL.start(revision, home)
    with pytest.raises(Unavailable, match=r"(?s)it ended\. Its log ends:.*no such tensor"):
        until(pulse.check, 60)


def test_one_that_died_is_told_even_when_it_is_up_again(
    target: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    revision = LOCAL.prepare(target, args, releases["7"], (), home)
    pulse = LOCAL.start(revision, home)
    until(lambda: LOCAL.answers(revision), 60)
    pulse.check()
    assert pulse.memory() > 10 << 20
    state = Supervisor(home).state(revision.program)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: LOCAL.answers(revision), 60)
    with pytest.raises(Unavailable, match="it ended"):
        pulse.check()


def test_killed_it_comes_back_at_the_same_address(
    target: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    revision = started(target, args, releases["7"], home)
    LOCAL.route(target, args, [Share(revision=revision)], home)
    state = Supervisor(home).state(revision.program)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    until(lambda: served_by(args) == "7", 60)


def test_stopped_it_leaves_no_process(
    target: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    revision = started(target, args, releases["7"], home)
    state = Supervisor(home).state(revision.program)
    assert state is not None
    family = [psutil.Process(state.pid), *psutil.Process(state.pid).children(recursive=True)]
    LOCAL.stop(revision, home)
    assert not LOCAL.is_well(revision, home)
    assert not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family
    )
    assert not is_taken(revision.port)


def test_a_port_of_somebody_elses_is_refused(target: str, home: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port}.*taken"):
            LOCAL.route(target, LocalArgs(port=port), [], home)
    assert all(front.target != target for front in Gateway(home).fronts())


def test_a_bento_that_is_nowhere_is_told(target: str, args: LocalArgs, home: Path) -> None:
    release = Release(name="demo", version="1", bento="demo:gone", digest="sha256:" + "0" * 64)
    assert not LOCAL.has(release, home)
    with pytest.raises(Unavailable, match="is not on this machine"):
        LOCAL.prepare(target, args, release, (), home)


def test_the_last_target_takes_the_gateway_along(
    target: str, args: LocalArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "alone"
    monkeypatch.setenv("WEIGHBRIDGE_HOME", str(home))
    LOCAL.route(target, args, [], home)
    assert Gateway(home).fronts() == [Front(target=target, port=args.port, args=args.gateway)]
    LOCAL.close(target, home)
    assert not Supervisor(home).running()
    assert not is_taken(args.port)
