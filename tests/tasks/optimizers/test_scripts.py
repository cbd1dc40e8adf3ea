"""Programs that make variants: what their failures say to a person."""

import sys
from pathlib import Path

import pytest

from weighbridge.core import progress
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.processes import Finished
from weighbridge.tasks.optimizers.gguf_conversion import chunks_done
from weighbridge.tasks.optimizers.onnx import BUILDER
from weighbridge.tasks.optimizers.scripts import REFUSED, OptimizerProgram, steps_done

PROGRAM = OptimizerProgram(
    "the tool", "cannot convert this model", "leave it out", "give more rows"
)


def test_a_builder_that_fails_is_told_in_one_line() -> None:
    output = "Traceback …\n  File x\nNotImplementedError: The  Moon model is\n"
    with pytest.raises(
        BadInput, match="cannot handle this model: NotImplementedError: The Moon model is"
    ):
        BUILDER.require_success(Finished(1, output), "making onnx-int4")
    with pytest.raises(Unavailable, match="ended by signal 9"):
        BUILDER.require_success(Finished(-9, ""), "making onnx-int4")
    with pytest.raises(Unavailable, match="the disk is full"):
        BUILDER.require_success(
            Finished(1, "OSError: [Errno 28] No space left on device"), "making onnx-int4"
        )


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("error: cannot open x\nValueError: no such type\ndone\n", "ValueError: no such type"),
        ("main: error: cannot open x\nbye\n", "main: error: cannot open x"),
        ("one\ntwo\nthree\nfour\n", "two three four"),
    ],
)
def test_the_reason_is_an_exception_or_an_error_or_the_end_of_what_it_printed(
    output: str, reason: str
) -> None:
    with pytest.raises(BadInput) as raised:
        PROGRAM.require_success(Finished(1, output), "making it")
    assert str(raised.value) == (
        f"making it: the tool cannot convert this model: {reason}; leave it out"
    )


def test_what_a_script_of_ours_refuses_is_told_in_its_own_words(tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.write_text("the rows are too short")
    with pytest.raises(BadInput) as raised:
        PROGRAM.require_success(Finished(REFUSED, ""), "making it", report)
    assert str(raised.value) == "making it: the rows are too short; give more rows"
    with pytest.raises(BadInput, match="cannot convert this model"):
        PROGRAM.require_success(Finished(REFUSED, "it ended"), "making it")


def test_progress_is_read_from_what_a_program_prints(tmp_path: Path) -> None:
    told: list[float | None] = []
    lines = ["[ 1/4] a", "loading", "save_imatrix: stored collected data after 10 chunks in x"]
    command = [sys.executable, "-c", f"print({chr(10).join(lines)!r})"]
    seen: list[progress.Step] = []

    def part_done(line: str) -> float | None:
        told.append(steps_done(line) or chunks_done(line, 40))
        return told[-1]

    with progress.listen(seen.append):
        PROGRAM.run(command, "making it", part_done=part_done)
    assert told == [0.25, None, 0.25]
    assert {step.total for step in seen} == {1}
