"""Locked environments: built whole or not at all, once, from the index that the machine is set up
for.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.stand_ins.http_server import server_of_files
from tests.wheels import make_wheel
from weighbridge.core import environments
from weighbridge.core.environments import ensure, locate
from weighbridge.core.errors import Unavailable
from weighbridge.core.paths import CHECKOUT
from weighbridge.core.uv_settings import uv_variables

ENSURE = """
import sys
from pathlib import Path
from weighbridge.core.environments import ensure
ensure(*map(Path, sys.argv[1:]))
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all there is in the world."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return folder


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.delenv("UV_NO_INDEX", raising=False)
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{server.getsockname()[1]}/simple")
        yield "127.0.0.1"


def write_lock(folder: Path, text: str, name: str = "tool") -> Path:
    lock = folder / f"{name}.lock"
    lock.write_text(text)
    return lock


def version_in(environment: environments.Environment, module: str) -> str:
    script = f"import {module}; print({module}.version)"
    return subprocess.run(
        [environment.python, "-c", script], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_an_environment_holds_what_its_lock_names(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha", "1.5"))
    make_wheel(wheels, "alpha", "2.0")
    assert version_in(ensure(lock, tmp_path / "cache"), "alpha") == "1.5"


def test_an_environment_is_built_once(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha"))
    first = ensure(lock, tmp_path / "cache")
    (wheels / "alpha-1.0-py3-none-any.whl").unlink()
    assert ensure(lock, tmp_path / "cache") == first


def test_another_lock_is_another_environment(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha", "1.0"))
    first = ensure(lock, tmp_path / "cache")
    lock.write_text(make_wheel(wheels, "alpha", "2.0"))
    second = ensure(lock, tmp_path / "cache")
    assert (version_in(first, "alpha"), version_in(second, "alpha")) == ("1.0", "2.0")


def test_a_version_nobody_has_is_named(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha").replace("1.0", "9.9"))
    with pytest.raises(
        Unavailable, match=r"environment of tool.*alpha==9\.9.*index settings"
    ) as caught:
        ensure(lock, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_other_bytes_under_the_same_version_are_refused(tmp_path: Path, wheels: Path) -> None:
    line = make_wheel(wheels, "alpha")
    lock = write_lock(tmp_path, line[:-8] + "00000000"[: len(line[-8:-1])] + "\n")
    with pytest.raises(Unavailable, match="alpha"):
        ensure(lock, tmp_path / "cache")


def test_a_lock_without_hashes_is_refused(tmp_path: Path, wheels: Path) -> None:
    make_wheel(wheels, "alpha")
    with pytest.raises(Unavailable, match="alpha"):
        ensure(write_lock(tmp_path, "alpha==1.0\n"), tmp_path / "cache")


def test_where_the_user_has_no_index_none_is_asked(
    tmp_path: Path, wheels: Path, silent_index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_NO_INDEX", "1")
    with pytest.raises(Unavailable, match="beta was not found in the provided package locations"):
        ensure(
            write_lock(tmp_path, make_wheel(wheels, "alpha").replace("alpha", "beta")),
            tmp_path / "cache",
        )


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha").replace("1.0", "9.9"))
    with pytest.raises(Unavailable):
        ensure(lock, tmp_path / "cache")
    environment, whole = locate(lock, tmp_path / "cache")
    assert not whole
    assert not environment.path.exists()


def test_what_an_interrupted_build_left_is_built_anew(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha"))
    environment = ensure(lock, tmp_path / "cache")
    (environment.path / ".complete").unlink()
    next(environment.path.rglob("alpha.py")).unlink()
    assert version_in(ensure(lock, tmp_path / "cache"), "alpha") == "1.0"


def test_an_environment_whose_python_is_gone_is_built_anew(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha"))
    environment = ensure(lock, tmp_path / "cache")
    environment.python.unlink()
    assert version_in(ensure(lock, tmp_path / "cache"), "alpha") == "1.0"


def test_a_killed_builder_takes_its_installer_along(
    tmp_path: Path, wheels: Path, silent_index: str
) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha").replace("alpha", "beta"))
    with subprocess.Popen([sys.executable, "-c", ENSURE, lock, tmp_path / "cache"]) as builder:
        installer = _child_of(builder.pid)
        builder.send_signal(signal.SIGKILL)
    psutil.wait_procs([installer], timeout=10)
    assert not installer.is_running()
    assert not locate(lock, tmp_path / "cache")[1]


def _child_of(pid: int) -> psutil.Process:
    """The installer, once it waits for the index."""
    parent = psutil.Process(pid)
    while parent.status() != psutil.STATUS_ZOMBIE:
        for child in parent.children():
            with suppress(psutil.ZombieProcess):  # the step before it, which has just ended
                if "install" in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError("the builder ended by itself")


def test_two_at_once_build_one(tmp_path: Path, wheels: Path) -> None:
    lock, cache = write_lock(tmp_path, make_wheel(wheels, "alpha")), tmp_path / "cache"
    told = f"import logging; logging.basicConfig(level=logging.INFO)\n{ENSURE}"
    command = [sys.executable, "-c", told, str(lock), str(cache)]
    with ExitStack() as stack:
        builders = [
            stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        words = [builder.communicate()[1] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0], words
    assert sum("built in" in text for text in words) == 1


def test_who_waits_for_another_builder_says_so(
    tmp_path: Path, wheels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "weighbridge")
    lock, cache = write_lock(tmp_path, make_wheel(wheels, "alpha")), tmp_path / "cache"
    path = locate(lock, cache)[0].path
    path.parent.mkdir(parents=True)
    waiter = threading.Thread(target=ensure, args=(lock, cache))
    with environments.one_at_a_time(path, "building"):
        waiter.start()
        waiter.join(1)
        assert "waiting for another process" in caplog.text
    waiter.join()
    assert locate(lock, cache)[1]


def test_a_full_disk_is_called_so() -> None:
    report = (
        "error: Failed to install: alpha-1.0\n  Caused by: No space left on device (os error 28)\n"
    )
    wrong, remedy = environments._explain(report, 2)
    assert wrong == "the disk is full"
    assert "uv cache prune" in remedy


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path, wheels: Path) -> None:
    lock = write_lock(tmp_path, make_wheel(wheels, "alpha"))
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(Unavailable, match=str(tmp_path / "cache")):
        ensure(lock, tmp_path / "cache")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """URL of a package index on this machine that has `gamma`; the lock's line lies beside its
    files.
    """
    root = tmp_path / "index"
    line = make_wheel(root / "simple" / "gamma", "gamma")
    (tmp_path / "gamma.line").write_text(line)
    with server_of_files(root) as server:
        yield f"{server.url}/simple"


@pytest.fixture
def no_uv_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.mark.usefixtures("no_uv_settings")
def test_the_index_that_pip_is_told_in_the_environment_is_used(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index)
    lock = write_lock(tmp_path, (tmp_path / "gamma.line").read_text())
    assert version_in(ensure(lock, tmp_path / "cache"), "gamma") == "1.0"


@pytest.mark.usefixtures("no_uv_settings")
def test_the_index_of_pips_own_file_is_used(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    lock = write_lock(tmp_path, (tmp_path / "gamma.line").read_text())
    assert version_in(ensure(lock, tmp_path / "cache"), "gamma") == "1.0"


@pytest.mark.usefixtures("no_uv_settings")
def test_what_uv_is_told_goes_before_what_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://pip.invalid/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://uv.invalid/simple")
    assert "UV_DEFAULT_INDEX" not in uv_variables()


@pytest.mark.usefixtures("no_uv_settings")
def test_a_shell_takes_over_what_pip_is_told_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "https://me:it's@pip.invalid/simple"
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", url)
    script = f'eval "$({sys.executable} -I -S {CHECKOUT}/core/uv_settings.py)"; echo "$UV_INDEX"'
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == f"{url}\n"


@pytest.mark.usefixtures("no_uv_settings")
@pytest.mark.parametrize("name", ["UV_FIND_LINKS", "PIP_FIND_LINKS"])
def test_torchs_cpu_build_is_taken_where_a_folder_offers_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environments.torch_lock().name == "torch.lock"
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    monkeypatch.setenv(name, str(tmp_path))
    assert environments.torch_lock().name == "torch.cpu.lock"


@pytest.mark.usefixtures("no_uv_settings")
def test_a_lock_that_needs_torch_brings_the_lock_of_torch(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, "# needs: torch\nalpha==1.0\n")
    assert [path.name for path in environments.locks_of(lock)] == ["tool.lock", "torch.lock"]


def test_a_lock_whose_maker_overruled_its_packages_is_installed_as_it_is(
    tmp_path: Path, wheels: Path
) -> None:
    line = make_wheel(wheels, "alpha", requires=["sound"])
    with pytest.raises(Unavailable, match="sound"):
        ensure(write_lock(tmp_path, line, "plain"), tmp_path / "cache")
    overruled = write_lock(tmp_path, f"# install: --no-deps\n{line}")
    assert version_in(ensure(overruled, tmp_path / "cache"), "alpha") == "1.0"


def test_a_lock_that_is_installed_as_it_is_still_needs_its_hashes(
    tmp_path: Path, wheels: Path
) -> None:
    make_wheel(wheels, "alpha")
    with pytest.raises(Unavailable, match="alpha"):
        ensure(write_lock(tmp_path, "# install: --no-deps\nalpha==1.0\n"), tmp_path / "cache")
