"""Candidates that were measured on machines of several kinds."""

import pytest

from tests.tasks.made import measured
from weighbridge.core.errors import BadInput
from weighbridge.tasks.measurement import Measurement
from weighbridge.tasks.select_args import SelectArgs
from weighbridge.tasks.selection.machines import are_alike, compared

EPYC = {"processor": "EPYC", "cores": "8", "memory": "31 GiB"}
XEON = {**EPYC, "processor": "Xeon"}


def on(label: str, machine: dict[str, str]) -> Measurement:
    return measured(label).model_copy(update={"machine": machine})


def test_hosts_of_one_kind_are_compared() -> None:
    alike = [on("q8", {**EPYC, "host": "a"}), on("q4", {**EPYC, "host": "b"}), on("old", {})]
    assert are_alike(alike)
    assert compared(alike, SelectArgs()) == ""


def test_speeds_of_unequal_machines_are_refused() -> None:
    unequal = [on("q8", EPYC), on("q4", XEON)]
    assert not are_alike(unequal)
    with pytest.raises(BadInput, match="q8 on EPYC, 8, 31 GiB; llama_cpp/q4 on Xeon"):
        compared(unequal, SelectArgs())


def test_where_no_speed_decides_unequal_machines_are_said() -> None:
    said = compared([on("q8", EPYC), on("q4", XEON)], SelectArgs(objective="quality"))
    assert said.startswith("figures of speed and memory are of unequal machines: llama_cpp/q8 on")


def test_a_candidate_that_failed_was_measured_on_no_machine() -> None:
    assert are_alike([on("q8", EPYC), measured("q4", failure="it died").model_copy(update=XEON)])
