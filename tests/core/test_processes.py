"""Child processes: who listens, what a group uses, and that nothing outlives its owner."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from tests.waiting import soon
from weighbridge.core import machine
from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import (
    LeastMemory,
    PeakMemory,
    Process,
    cpu_seconds,
    free_port,
    is_taken,
    listens,
    memory_of,
)

FAMILY = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; "
    "time.sleep(60)']); "
)


def python(code: str, folder: Path) -> Process:
    return Process("child", [sys.executable, "-c", code], log=folder / "log", cwd=folder)


def group_of(process: Process, size: int) -> list[psutil.Process]:
    """All members, once there are so many."""
    process.wait_until(
        lambda: len(psutil.Process(process.pid).children(recursive=True)) >= size - 1, 20
    )
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def test_a_taken_port_is_seen_and_whose_it_is(tmp_path: Path) -> None:
    port = free_port()
    assert not is_taken(port)
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    with python(code, tmp_path) as process:
        process.wait_until(lambda: is_taken(port), 20)
        assert listens(process.pid, port)
    assert not is_taken(port)
    with (
        socket.create_server(("127.0.0.1", port)),
        python("import time; time.sleep(60)", tmp_path) as process,
    ):
        assert is_taken(port)
        assert not listens(process.pid, port)


def test_the_whole_group_ends_with_it(tmp_path: Path) -> None:
    with python(FAMILY + "time.sleep(60)", tmp_path) as process:
        members = group_of(process, 2)
    assert not any(member.is_running() for member in members)


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code += "print('deaf', flush=True); time.sleep(60)"
    process = python(code, tmp_path)
    process.wait_until(lambda: "deaf" in process.tail(), 20)
    process.stop(grace=0.3)
    assert not process.alive()


def test_it_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from weighbridge.core.processes import "
        "Process; "
        "p = Process('child', [sys.executable, '-c', 'import time; time.sleep(60)'], "
        "log=Path('log'), cwd=Path('.')); "
        "print(p.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(root)},
        text=True,
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert soon(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)


def test_waiting_ends_at_once_when_it_dies(tmp_path: Path) -> None:
    code = "print('no such file: weights'); raise SystemExit(3)"
    with (
        python(code, tmp_path) as process,
        pytest.raises(Unavailable, match=r"(?s)status 3 .*no such file: weights"),
    ):
        process.wait_until(lambda: False, 60)


def test_peak_memory_is_of_the_whole_group(tmp_path: Path) -> None:
    child = "import time; b = bytearray(b'x') * 80_000_000; print(1, flush=True); time.sleep(60)"
    parent = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); "
        "time.sleep(60)"
    )
    with python(parent, tmp_path) as process, PeakMemory(process.pid, interval=0.02) as peak:
        process.wait_until(lambda: peak.bytes > 80_000_000, 20)


def test_processor_time_is_of_the_whole_group_also_of_children_that_have_ended(
    tmp_path: Path,
) -> None:
    child = "import time\nwhile time.process_time() < 0.3: pass"
    parent = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {child!r}]); "
        "print(1, flush=True); time.sleep(60)"
    )
    with python(parent, tmp_path) as process:
        process.wait_until(lambda: process.tail() != "", 20)
        assert cpu_seconds(process.pid) >= 0.3
    assert cpu_seconds(process.pid) == 0


def test_a_file_that_another_process_maps_as_well_counts_whole(tmp_path: Path) -> None:
    """Two engines over the same weights: either would need all of them by itself."""
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * 40_000_000)
    engine = (
        f"import mmap, time; f = open({str(weights)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, "
        "access=mmap.ACCESS_READ); sum(m[::4096]); print(1, flush=True); time.sleep(60)"
    )
    with python(engine, tmp_path) as one, python(engine, tmp_path / "other") as two:
        for process in (one, two):
            process.wait_until(lambda process=process: process.tail() != "", 20)  # type: ignore[misc]
        assert memory_of([one.pid]) > 40_000_000
        both = memory_of([one.pid, two.pid])
        assert both < memory_of([one.pid]) + memory_of([two.pid]) - 40_000_000, "shared: once"
    assert memory_of([one.pid]) == 0, "it has ended"


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="starting child"):
        Process("child", ["/nowhere/program"], log=tmp_path / "log", cwd=tmp_path)


def test_the_least_memory_is_known_after_it_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = threading.Event()
    left = iter([900, 100])

    def available() -> int:
        now = next(left, None)
        if now is None:
            seen.set()
        return 800 if now is None else now

    monkeypatch.setattr(machine, "available_memory", available)
    with LeastMemory(interval=0.01) as least:
        assert seen.wait(10)
    assert least.bytes == 100
