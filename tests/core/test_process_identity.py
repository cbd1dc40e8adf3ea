"""Which process a record means, and whether it still lives."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys

import pytest

from weighbridge.core.process_identity import identity, is_gone, machine


def test_a_process_is_gone_when_it_has_ended_though_another_has_its_number() -> None:
    assert is_gone(identity()) is False
    assert is_gone(f"{machine()} {os.getpid()} 1.0") is True
    child = multiprocessing.get_context("spawn").Process(target=os.getpid)
    child.start()
    child.join()
    assert is_gone(f"{machine()} {child.pid} 5.0") is True


def test_older_records_have_the_host_name_alone() -> None:
    assert is_gone(f"{socket.gethostname()} {os.getpid()} 1.0") is True


@pytest.mark.parametrize("process", ["elsewhere 1 1.0", "", "no identity at all"])
def test_what_cannot_be_looked_up_here_is_unknown(process: str) -> None:
    assert is_gone(process) is None


def test_a_living_process_is_unknown_to_a_container_of_the_same_host_name() -> None:
    asked = (
        "import sys; from weighbridge.core.process_identity import is_gone; "
        "print(is_gone(sys.argv[1]))"
    )
    unshare = shutil.which("unshare")
    command = [str(unshare), "--pid", "--fork", "--mount-proc", sys.executable, "-c", asked]
    done = subprocess.run([*command, identity()], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no process namespace can be made here: {done.stderr.strip()[-100:]}")
    assert done.stdout.strip() == "None"
