"""What a container's limits leave of the machine, whichever version of control groups it has."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from weighbridge.core import machine

Limit = Callable[[str, dict[str, str]], None]
MEBIBYTE = 1 << 20


@pytest.fixture
def version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limit:
    """A process in the group `/pod/container`; limits of any group can be written."""
    mount = tmp_path / "cgroup"
    write(tmp_path / "proc", {"cgroup": "0::/pod/container\n"})
    write(tmp_path / "proc", {"mountinfo": f"31 23 0:28 / {mount} rw - cgroup2 cgroup2 rw\n"})
    monkeypatch.setattr(machine, "PROCESS", tmp_path / "proc")
    return lambda group, files: write(mount / group, files)


@pytest.fixture
def version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limit:
    """A process in `/docker/abc`, which sees that group alone, at a path with a space in it."""
    mounts = {name: tmp_path / "c groups" / name for name in ("cpu,cpuacct", "memory")}
    escaped = {name: str(mount).replace(" ", "\\040") for name, mount in mounts.items()}
    lines = [
        f"30 23 0:2 /docker/abc {mount} ro - cgroup cgroup rw,{name}\n"
        for name, mount in escaped.items()
    ]
    groups = "".join(f"{number}:{name}:/docker/abc\n" for number, name in enumerate(mounts, 3))
    write(tmp_path / "proc", {"cgroup": f"{groups}0::/\n", "mountinfo": "".join(lines)})
    monkeypatch.setattr(machine, "PROCESS", tmp_path / "proc")
    return lambda controller, files: write(mounts[controller], files)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def test_without_limits_all_of_it_counts(version_2: Limit) -> None:
    assert machine.cores() == len(os.sched_getaffinity(0))
    version_2("pod/container", {"cpu.max": "max 100000\n", "memory.max": "max\n"})
    assert machine.cores() == len(os.sched_getaffinity(0))
    assert machine.memory() > 1 << 28


@pytest.mark.usefixtures("eight_cores")
def test_cores_that_nothing_limits_are_left_to_the_program(version_2: Limit) -> None:
    assert (machine.cores(), machine.limited_cores()) == (8, None)
    version_2("pod/container", {"cpu.max": "200000 100000\n"})
    assert (machine.cores(), machine.limited_cores()) == (2, 2)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("quota", "cores"), [("50000 100000", 1), ("250000 100000", 2), ("900000 100000", 8)]
)
def test_a_containers_quota_counts_in_whole_cores(version_2: Limit, quota: str, cores: int) -> None:
    version_2("pod/container", {"cpu.max": f"{quota}\n", "memory.max": "268435456\n"})
    assert machine.cores() == cores
    assert machine.memory() == 268435456


@pytest.mark.usefixtures("eight_cores")
def test_the_limit_of_an_outer_group_counts_too(version_2: Limit) -> None:
    version_2("pod/container", {"cpu.max": "600000 100000\n", "memory.max": "max\n"})
    version_2("pod", {"cpu.max": "300000 100000\n", "memory.max": f"{512 * MEBIBYTE}\n"})
    assert machine.cores() == 3
    assert machine.memory() == 512 * MEBIBYTE


@pytest.mark.usefixtures("eight_cores")
def test_the_first_version_of_control_groups_counts_too(version_1: Limit) -> None:
    version_1("cpu,cpuacct", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"})
    assert machine.cores() == 8
    version_1("cpu,cpuacct", {"cpu.cfs_quota_us": "200000\n"})
    version_1("memory", {"memory.limit_in_bytes": f"{64 * MEBIBYTE}\n"})
    assert machine.cores() == 2
    assert machine.memory() == 64 * MEBIBYTE
    version_1("memory", {"memory.limit_in_bytes": "9223372036854771712\n"})
    assert machine.memory() < 1 << 60


def test_what_a_limit_leaves_is_available_and_cached_files_are_no_use_of_it(
    version_2: Limit,
) -> None:
    unlimited = machine.available_memory()
    version_2(
        "pod/container",
        {
            "memory.max": f"{16 * MEBIBYTE}\n",
            "memory.current": f"{12 * MEBIBYTE}\n",
            "memory.stat": f"anon {2 * MEBIBYTE}\ninactive_file {10 * MEBIBYTE}\n",
        },
    )
    assert machine.available_memory() == 14 * MEBIBYTE < unlimited


def test_a_machine_without_control_groups_has_no_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "PROCESS", tmp_path)
    assert machine.cores() == len(os.sched_getaffinity(0))
    assert machine.available_memory() <= machine.memory()


def test_people_are_told_what_it_is() -> None:
    parts = machine.describe()
    assert set(parts) - {"gpu"} == {"processor", "cores", "memory"}
    assert all(parts.values())
