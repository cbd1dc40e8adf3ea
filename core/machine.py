"""What this machine is, and what a container's limits leave of it: cores, memory, graphics cards.

Nothing but the standard library is imported: servers in the environments of engines ask here too.
"""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

PROCESS: Final = Path("/proc/self")
"""Where the kernel says which control groups this process is in."""
MEMINFO: Final = Path("/proc/meminfo")


def cores() -> int:
    """Return how many processor cores this process may use: by its affinity and its quotas.

    A quota of two and a half cores counts as two: a third thread would be throttled half the time.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, min([allowed, *(int(quota) for quota in _core_quotas())]))


def limited_cores() -> int | None:
    """Return `cores` where that is fewer than the machine has, else None.

    It is for programs that choose well on a machine of their own, but count all its cores in a
    container too.
    """
    usable = cores()
    return usable if usable < (os.cpu_count() or 1) else None


def memory() -> int:
    """Return how many bytes of memory this process may use: the machine's, or a lower limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit for limit, _ in _memory_limits())])


def available_memory() -> int:
    """Return how many bytes another process could take without swapping or being killed."""
    available = next(
        int(line.split()[1]) * 1024
        for line in MEMINFO.read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return max(0, min([available, *(limit - used for limit, used in _memory_limits())]))


def let_waiting_threads_sleep() -> None:
    """Have threads of OpenMP sleep, not spin, while they wait. Call before torch is loaded.

    With two threads on two cores that had one other process to run, 12 training steps of a 25M
    model took 17 s of time and 19 s of CPU; with threads that sleep 12 s and 12 s. On idle cores it
    is about the same.
    """
    # torch reads it once, while it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def describe() -> dict[str, str]:
    """Return processor, cores, memory and graphics cards, for people and for records.

    Measurements are kept by it: speed and memory figures hold for one kind of machine alone.
    """
    parts = {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{memory() / 2**30:.0f} GiB",
    }
    cards = _graphics_cards()
    return {**parts, "gpu": cards} if cards else parts


def _core_quotas() -> Iterator[float]:
    for group in _control_groups("cpu"):
        # Version 2 has one file, version 1 two; both may say that there is no quota.
        quota, _, period = _first_line(group / "cpu.max").partition(" ")
        if not quota:
            quota = _first_line(group / "cpu.cfs_quota_us")
            period = _first_line(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield every limit that holds for this process, and what counts against it now, in bytes."""
    for group in _control_groups("memory"):
        for limit_name, usage_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _first_line(group / limit_name), _first_line(group / usage_name)
            if limit.isdigit():
                yield int(limit), _unreclaimable(group, int(usage or 0), cache_name)


def _unreclaimable(group: Path, usage: int, cache_name: str) -> int:
    """Return a group's usage without cached files, which the kernel drops as soon as it must."""
    try:
        statistics = (group / "memory.stat").read_text()
    except OSError:
        return usage
    cached = re.search(rf"^{cache_name} (\d+)$", statistics, re.MULTILINE)
    return usage - int(cached[1]) if cached else usage


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the groups of a controller that this process is in, innermost first.

    A limit holds for all groups below it, so the outer ones count as well.
    """
    for root, mount, controllers in _control_group_mounts():
        for line in _lines(PROCESS / "cgroup"):
            _, names, path = line.split(":", 2)
            # Version 2 has one hierarchy for all controllers, whose line names none.
            if names != controllers or (names and controller not in names.split(",")):
                continue
            # In a container, the path may be one that only the host sees: then the mount is ours.
            inside = path.startswith(root.rstrip("/") + "/") and ".." not in path
            folder = mount / path.removeprefix(root).strip("/") if inside else mount
            yield from (folder, *(above for above in folder.parents if above.is_relative_to(mount)))


def _control_group_mounts() -> Iterator[tuple[str, Path, str]]:
    """Yield root and mount point of each hierarchy, and its controllers as PROCESS names them."""
    groups = [line.split(":", 2)[1] for line in _lines(PROCESS / "cgroup")]
    for line in _lines(PROCESS / "mountinfo"):
        mounted, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" ", 2), "", ""][:3]
        root, mount = (_unescaped(field) for field in mounted.split(" ")[3:5])
        if kind == "cgroup2":
            yield root, Path(mount), ""
        elif kind == "cgroup":
            mounted_controllers = set(options.split(","))
            yield from (
                (root, Path(mount), names)
                for names in groups
                if names and set(names.split(",")) <= mounted_controllers
            )


def _unescaped(field: str) -> str:
    """Return a path as it is: the kernel writes spaces in it as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda number: chr(int(number[1], 8)), field)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _first_line(path: Path) -> str:
    return next(iter(_lines(path)), "").strip()


@cache
def _processor() -> str:
    # On ARM the kernel names no model here.
    lines = _lines(Path("/proc/cpuinfo"))
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


@cache
def _graphics_cards() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    finished = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(finished.stdout.split("\n")).strip("; ") if finished.returncode == 0 else None
