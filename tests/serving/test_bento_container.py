"""A Bento as a container's first process: what it ends with, and whom it tells to end."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weighbridge.services.images.image import LAUNCHER

BENTOML = """#!{python}
import os, signal, sys, time
print("serves", *sys.argv[1:], flush=True)
if os.environ.get("ENDS"):
    sys.exit(int(os.environ["ENDS"]))
if not os.fork():
    sys.exit(0)  # a child that this process never waits for
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
time.sleep(60)
"""
"""In place of BentoML, whose command this is: ends with 0 when it is asked to."""


@pytest.fixture
def start(tmp_path: Path) -> "Start":
    return Start(tmp_path)


class Start:
    """Starts the script by a Python beside which there is such a `bentoml`."""

    def __init__(self, folder: Path) -> None:
        self.bento = folder / "bento"
        self.bento.mkdir()
        (self.bento / "bento.yaml").touch()
        programs = folder / "bin"
        programs.mkdir()
        (programs / "bentoml").write_text(BENTOML.format(python=sys.executable))
        (programs / "bentoml").chmod(0o755)
        shutil.copy(LAUNCHER, folder)
        self.script = folder / LAUNCHER.name
        # By another name of it, `sys.executable` is the one in this folder.
        (programs / "python").symlink_to(sys.executable)
        self.python = programs / "python"

    def __call__(self, bento: Path | None = None, **variables: str) -> "subprocess.Popen[str]":
        command = [str(self.python), "-I", str(self.script), str(bento or self.bento)]
        output = subprocess.PIPE
        environment = {**os.environ, **variables}
        return subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_has_bentoml_end_and_ends_with_0(
    start: Start, number: signal.Signals
) -> None:
    process = start(PORT="1234")
    assert process.stdout is not None
    told = process.stdout.readline().split()
    address = ["--host", "0.0.0.0", "--port", "1234"]
    assert told == ["serves", "serve", str(start.bento), *address, "--timeout-keep-alive", "3900"]
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(("ends", "status"), [("0", 1), ("3", 3)])
def test_where_nobody_asked_it_never_ends_well(start: Start, ends: str, status: int) -> None:
    process = start(ENDS=ends)
    process.communicate(timeout=20)
    assert process.returncode == status


def test_without_a_bento_one_line_says_so(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors == f"error: serving {tmp_path}: no Bento is there; mount one\n"
