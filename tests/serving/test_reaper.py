"""The reaper of a server of several processes: however the first one ends, the others end too."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import Process
from weighbridge.serving.engines.command_line import REAPER, guarded

# A first process with two more in its group, one of which will not be told.
SERVER = """
import signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn])
subprocess.Popen(["sleep", "600"])
if sys.argv[1:] == ["ends"]:
    sys.exit(3)
print("up", flush=True)
time.sleep(600)
"""


def start(folder: Path, *words: str) -> Process:
    python = Path(sys.executable)
    command = guarded([sys.executable, "-c", SERVER, *words], python)
    return Process("the server", command, log=folder / "log", cwd=folder)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    with start(tmp_path) as process:
        process.wait_until(lambda: process.tail() == "up", 30)
        yield process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_a_server_leaves_behind_is_ended(server: Process, number: signal.Signals) -> None:
    children = psutil.Process(server.pid).children(recursive=True)
    assert len(children) == 2
    psutil.Process(server.pid).send_signal(number)
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_a_server_that_ends_by_itself_leaves_nothing_and_keeps_its_status(tmp_path: Path) -> None:
    with start(tmp_path, "ends") as process:
        with pytest.raises(Unavailable, match="ended with status 3"):
            process.wait_until(lambda: False, 30)
        group = process.pid
        left = [
            p
            for p in psutil.process_iter()
            if _group_of(p) == group and p.status() != psutil.STATUS_ZOMBIE
        ]
        assert not psutil.wait_procs(left, timeout=20)[1]


def test_the_server_knows_no_child_that_it_did_not_start(server: Process) -> None:
    assert len(psutil.Process(server.pid).children()) == 2


# Leads a session, and has ended by the time that its child goes on as the reaper.
KILLED_PARENT = """
import os, sys, time
leader = os.getpid()
if os.fork() == 0:
    while os.getppid() == leader:
        time.sleep(0.01)
    who, python, reaper, file = sys.argv[1:]
    who = who or str(leader)
    os.execv(python, [python, "-I", reaper, "--parent", who, "--", "touch", file])
os._exit(0)
"""


@pytest.mark.parametrize("who", ["session", ""])
def test_nothing_starts_whose_parent_was_killed_before_the_kernel_was_asked(
    who: str, tmp_path: Path
) -> None:
    file = tmp_path / "started"
    command = [sys.executable, "-c", KILLED_PARENT, who, sys.executable, str(REAPER), str(file)]
    # Until the child has ended, too: it holds the pipe.
    subprocess.run(command, stdout=subprocess.PIPE, start_new_session=True, check=True)
    assert not file.exists()


def _group_of(process: psutil.Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return 0
