"""What this machine is: speed and memory figures hold for it alone."""

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def cores() -> int:
    """Processor cores this process may use: its affinity, and a container's quota."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = _first_line(CGROUP / "cpu.max").partition(" ")
    return max(1, min(allowed, int(quota) // int(period))) if quota.isdigit() else allowed


def memory() -> int:
    """Bytes of memory this process may use: the machine's, and a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _first_line(CGROUP / "memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def let_waiting_threads_sleep() -> None:
    """Call before torch is loaded, which reads it then: its threads spin while they wait for each
    other.

    With two threads on two cores that had one other process to run, 12 training steps of a 25M
    model took 17 s of time and 19 s of CPU; with threads that sleep 12 s and 12 s. On idle cores it
    is about the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def describe() -> dict[str, str]:
    """Processor, cores, memory and graphics cards, for people and as part of what a measurement is
    kept by.
    """
    found = {
        "processor": _processor(),
        "cores": str(cores()),
        "memory": f"{memory() / 2**30:.0f} GiB",
    }
    cards = _graphics_cards()
    return {**found, "gpu": cards} if cards else found


def _first_line(path: Path) -> str:
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError:
        return ""


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


@cache
def _graphics_cards() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""
