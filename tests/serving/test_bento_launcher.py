"""A Bento without the first process of `bentoml serve`, and with it where BentoML has changed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weighbridge.core.environments import Environment
from weighbridge.core.processes import free_port
from weighbridge.serving import bento_process

WORKER = """#!{python} -I
import os, signal, sys, time
def told(line):
    os.write(1, line)
    os._exit(0)
print(os.path.basename(sys.argv[0]), *sys.argv[1:], flush=True)
if {status}:
    sys.exit({status})
signal.signal(signal.SIGTERM, lambda *_: os.wait() and told(b"worker told\\n"))
if os.fork() == 0:
    signal.signal(signal.SIGTERM, lambda *_: told(b"engine told\\n"))
    os.write(1, b"engine up\\n")
time.sleep(60)
"""


def environment(folder: Path, status: int = 0) -> Environment:
    """One whose Python is a worker that ends at once with a status, or with its engine."""
    (folder / "bin").mkdir()
    for name in ("python", "bentoml"):
        program = folder / "bin" / name
        program.write_text(WORKER.format(python=sys.executable, status=status))
        program.chmod(0o755)
    return Environment("made up", folder)


def launched(folder: Path, status: int = 0) -> "subprocess.Popen[str]":
    command = bento_process.serve_command(
        folder, environment(folder, status), "127.0.0.1", free_port()
    )
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_worker_and_engine_are_both_told_to_end(tmp_path: Path) -> None:
    with launched(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("python -m _bentoml_impl.worker.service ")
        assert process.stdout.readline() == "engine up\n"
        os.kill(process.pid, signal.SIGTERM)
        assert sorted(process.stdout) == ["engine told\n", "worker told\n"]
        assert process.wait() == 0


def test_where_bentoml_has_changed_inside_its_own_command_serves(tmp_path: Path) -> None:
    with launched(tmp_path, status=2) as process:
        output, _ = process.communicate()
    worker, changed, command = output.splitlines()
    assert worker.startswith("python -m ")
    assert "BentoML has another _bentoml_impl.worker.service" in changed
    assert command.startswith(f"bentoml serve {tmp_path} --host 127.0.0.1 --port ")
    assert process.returncode == 2


def test_how_its_worker_ends_is_how_it_ends(tmp_path: Path) -> None:
    with launched(tmp_path, status=7) as process:
        process.communicate()
    assert process.returncode == 7


def test_the_public_way_is_bentomls_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHBRIDGE_FAST_START", "false")
    command = bento_process.serve_command(tmp_path, environment(tmp_path), "127.0.0.1", 1)
    assert command[:2] == [str(tmp_path / "bin" / "bentoml"), "serve"]
