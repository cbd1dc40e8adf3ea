"""A process that is to end with its parent, whose parent has ended before it could be said."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = (
    "import sys; from weighbridge.core.parent_death import die_with_parent; "
    "die_with_parent(int(sys.argv[1])); print('lives', flush=True)"
)


@pytest.mark.parametrize(("another", "status"), [(0, 0), (1, -signal.SIGKILL)])
def test_it_ends_at_once_where_its_parent_has_ended_already(another: int, status: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(os.getpid() + another)]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == status
    assert bool(done.stdout) == (status == 0)
