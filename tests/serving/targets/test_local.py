"""Target `local`: one release at one address, and a way back."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from core.errors import BadInput, Unavailable
from core.processes import free_port, is_taken
from core.settings import Settings
from core.workspace import Workspace
from serving.client import is_ready
from serving.supervisor import Supervisor
from serving.targets.base import Release
from serving.targets.local import Local, LocalArgs
from tests.serving import bentos

pytestmark = pytest.mark.xdist_group("local")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """One home for the module: Bentos are built once; every test serves under a name and a port of its own."""
    folder = tmp_path_factory.mktemp("local")
    yield Workspace(Settings(home=folder / "home"))
    Supervisor(folder / "home").shutdown()


@pytest.fixture(autouse=True)
def _homes(shared: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(shared.settings.home.parent / "bentoml"))


@pytest.fixture(scope="module")
def releases(shared: Workspace) -> dict[str, Release]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(shared.settings.home.parent / "bentoml"))
        return {
            "old": bentos.release(shared, parallel=1),
            "new": bentos.release(shared, parallel=2),
            "broken": bentos.release(shared, whole=False),
        }


@pytest.fixture
def home(shared: Workspace) -> Path:
    return shared.settings.home


@pytest.fixture
def args() -> LocalArgs:
    return LocalArgs(port=free_port(), start_timeout=120, stop_seconds=10)


@pytest.fixture
def name(args: LocalArgs, home: Path) -> Iterator[str]:
    yield f"target{args.port}"
    Local().down(f"target{args.port}", home)


def until_healthy(name: str, home: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not Local().status(name, home).healthy:
        assert time.monotonic() < deadline, Local().status(name, home)
        time.sleep(0.1)


def program(name: str, home: Path) -> psutil.Process:
    state = next(state for state in Supervisor(home).states() if state.name.startswith(name))
    return psutil.Process(state.pid)


def test_serves_at_its_address(name: str, args: LocalArgs, releases: dict[str, Release], home: Path) -> None:
    serving = Local().deploy(name, args, releases["old"], home)
    assert serving.address == f"http://127.0.0.1:{args.port}"
    assert is_ready(serving.address)
    status = Local().status(name, home)
    assert status.healthy
    assert status.release == releases["old"]
    assert status.since == pytest.approx(time.time(), abs=60)


def test_served_already_nothing_is_done(name: str, args: LocalArgs, releases: dict[str, Release], home: Path) -> None:
    first = Local().deploy(name, args, releases["old"], home)
    pid = program(name, home).pid
    again = Local().deploy(name, args, releases["old"], home)
    assert "nothing to do" in again.detail
    assert (again.since, program(name, home).pid) == (first.since, pid)


def test_a_swap_is_short(name: str, args: LocalArgs, releases: dict[str, Release], home: Path) -> None:
    Local().deploy(name, args, releases["old"], home)
    misses: list[float] = []
    over = threading.Event()

    def poll() -> None:
        while not over.wait(0.05):
            try:
                httpx.get(f"http://127.0.0.1:{args.port}/health", timeout=5).raise_for_status()
            except httpx.HTTPError:
                misses.append(time.monotonic())

    watcher = threading.Thread(target=poll)
    watcher.start()
    swapped = Local().deploy(name, args, releases["new"], home)
    over.set()
    watcher.join()
    assert swapped.release == releases["new"]
    assert len([state for state in Supervisor(home).states() if state.name.startswith(name)]) == 1
    assert not misses or misses[-1] - misses[0] < 5


def test_one_that_does_not_answer_never_costs_the_old_one(
    name: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    Local().deploy(name, args, releases["old"], home)
    with pytest.raises(Unavailable, match=r"failed to load model|did not start"):
        Local().deploy(name, args, releases["broken"], home)
    status = Local().status(name, home)
    assert status.healthy
    assert status.release == releases["old"]
    assert is_ready(status.address)


def test_the_first_one_that_does_not_answer_leaves_nothing(
    name: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    with pytest.raises(Unavailable, match=r"failed to load model|did not start"):
        Local().deploy(name, args, releases["broken"], home)
    assert Local().status(name, home).release is None
    assert not is_taken(args.port)


def test_a_port_of_somebody_elses_is_refused_first(
    name: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    Local().deploy(name, args, releases["old"], home)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BadInput, match=f"port {port} .* is taken by .*process {os.getpid()}"):
            Local().deploy(name, args.model_copy(update={"port": port}), releases["new"], home)
    assert Local().status(name, home).release == releases["old"]


def test_another_targets_port_is_refused(name: str, args: LocalArgs, releases: dict[str, Release], home: Path) -> None:
    Local().deploy(name, args, releases["old"], home)
    with pytest.raises(BadInput, match="is taken"):
        Local().deploy("another", args, releases["new"], home)


def test_killed_it_comes_back(name: str, args: LocalArgs, releases: dict[str, Release], home: Path) -> None:
    Local().deploy(name, args, releases["old"], home)
    program(name, home).kill()
    until_healthy(name, home)


def test_down_leaves_no_process(name: str, args: LocalArgs, releases: dict[str, Release], home: Path) -> None:
    Local().deploy(name, args, releases["old"], home)
    root = program(name, home)
    processes = [root, *root.children(recursive=True)]
    Local().down(name, home)
    deadline = time.monotonic() + 10
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not is_taken(args.port)
    assert Local().status(name, home).release is None


@pytest.mark.parametrize("seconds", [0.3, 3.0, 6.0])
def test_killed_in_the_middle_one_of_them_serves(
    seconds: float, name: str, args: LocalArgs, releases: dict[str, Release], home: Path
) -> None:
    Local().deploy(name, args, releases["old"], home)
    code = (
        "import sys; from pathlib import Path; from serving.targets.base import Release; "
        "from serving.targets.local import Local, LocalArgs; "
        "Local().deploy(sys.argv[1], LocalArgs.model_validate_json(sys.argv[2]), "
        "Release.model_validate_json(sys.argv[3]), Path(sys.argv[4]))"
    )
    words = [name, args.model_dump_json(), releases["new"].model_dump_json(), str(home)]
    deployer = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT)
    time.sleep(seconds + 1.0)
    deployer.send_signal(signal.SIGKILL)
    deployer.wait()
    until_healthy(name, home)
    assert Local().deploy(name, args, releases["new"], home).release == releases["new"]
    assert is_ready(f"http://127.0.0.1:{args.port}")
    assert len([state for state in Supervisor(home).states() if state.name.startswith(name)]) == 1
