"""What the A/A run makes of its witness: how far the machine drifted, and whether that was seen."""

import math
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.same import net_drift, recognition
from benchmarks.witness import Sample, change, witness
from tests.waiting import until

ENDS = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
"""Five blocks of a second each."""


def at(*seconds: float) -> list[Sample]:
    """One sample in the middle of each block."""
    return [Sample(number + 0.5, duration) for number, duration in enumerate(seconds)]


def test_the_last_half_of_the_blocks_is_held_against_the_first() -> None:
    # What happens in the middle one is of neither half, as in the product's own verdict.
    assert change(at(0.1, 0.1, 9.0, 0.05, 0.05), ENDS) == pytest.approx(1.0)
    assert change(at(0.1, 0.1, 0.1, 0.2, 0.2), ENDS) == pytest.approx(-0.5)
    assert change(at(0.1, 0.1, 0.1, 0.1, 0.1), ENDS) == pytest.approx(0.0)


def test_what_was_not_seen_is_unknown() -> None:
    assert math.isnan(change(at(0.1, 0.1, 0.1), ENDS))


def test_the_net_drift_is_the_machines_own_and_what_was_taken() -> None:
    assert net_drift(at(0.1, 0.1, 0.1, 0.1, 0.1), ENDS, 0.1) == pytest.approx(-0.1)
    became_faster = at(0.1, 0.1, 0.1, 0.09, 0.09)
    assert net_drift(became_faster, ENDS, 0.1) == pytest.approx(0.0)
    assert net_drift(became_faster, ENDS, 0.0) == pytest.approx(1 / 9)


def test_only_what_really_drifted_has_to_be_noticed() -> None:
    nets = [-0.1, -0.05, 0.02, -0.02, 0.08, math.nan]
    noticed = [True, True, True, False, False, False]
    assert recognition(nets, noticed) == (3, pytest.approx(2 / 3))
    drifted, share = recognition([0.0], [False])
    assert drifted == 0
    assert math.isnan(share)


def test_a_witness_does_not_outlive_who_started_it() -> None:
    begin = "import time; from benchmarks.witness import witness\n"
    begin += "with witness() as beside:\n  while not beside.samples(): time.sleep(0.05)\n"
    begin += "  print(beside.process.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", begin]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        beside = psutil.Process(int(started.stdout.readline()))
        started.kill()
    until(lambda: has_ended(beside), 20)


def has_ended(process: psutil.Process) -> bool:
    # Nobody may be there to take the status of one whose parent was killed.
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_witness_works_in_a_process_of_its_own_until_its_block_ends() -> None:
    with witness() as beside:
        deadline = time.monotonic() + 20
        while len(beside.samples()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        first, second = beside.samples()[:2]
        assert 0 < first.seconds < second.at - first.at
    assert not beside.process.is_running()
