"""Commands run to their end: output, status, and nothing left of them when interrupted."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from weighbridge.core.errors import Unavailable
from weighbridge.core.processes import run

TALK = (
    "import sys; print('one', flush=True); print('two', file=sys.stderr, flush=True); sys.exit(3)"
)


def test_words_and_status_come_back() -> None:
    done = run("talker", [sys.executable, "-c", TALK])
    assert (done.status, done.output.split()) == (3, ["one", "two"])
    assert done.tail(1) == "two"


def test_lines_are_told_as_they_come() -> None:
    lines: list[str] = []
    run("talker", [sys.executable, "-c", TALK], on_line=lines.append)
    assert lines == ["one", "two"]


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(Unavailable, match=r"starting nobody: .*no-such-program"):
        run("nobody", ["/no-such-program"])


def test_an_interrupted_call_ends_the_whole_group() -> None:
    seen: list[int] = []

    def stop(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("sleeper", ["sh", "-c", "sleep 600 & echo $!; wait"], on_line=stop)
    assert _gone(seen[0])


def test_a_killed_caller_takes_its_command_along(tmp_path: Path) -> None:
    shell = f"echo $$ > {tmp_path}/pid; exec sleep 600"
    script = f"from weighbridge.core.processes import run; run('s', ['sh', '-c', {shell!r}])"
    with subprocess.Popen([sys.executable, "-c", script]) as caller:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.02)
        caller.send_signal(signal.SIGKILL)
    assert _gone(int((tmp_path / "pid").read_text()))


def _gone(pid: int, patience: float = 5.0) -> bool:
    """Whether a process has ended, or is about to: a zombie counts."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False
