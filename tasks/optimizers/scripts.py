"""Programs of others that make variants: run under one set of rules, failures told in one way."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weighbridge.core.environments import ensure
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.core.processes import Finished, run, tells_of_full_disk
from weighbridge.core.progress import track

# EX_DATAERR of sysexits.h: the input was wrong. Python itself exits with 1 or 2.
REFUSED: Final = 65
"""Exit status by which a script of ours says that its report is a reason, for a person."""
OFFLINE: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
}
"""What scripts run under: nothing is looked up elsewhere, and only errors are printed."""
LONGEST_REASON: Final = 400
"""Characters of a program's own words that fit into a message."""

Command = Sequence[str | Path]
PartDone = Callable[[str], float | None]
"""Takes a line that a program printed; returns the part of its work that is done, if it says so."""
logger = logging.getLogger(__name__)


def script(path: Path, lock: Path, cache: Path) -> list[str | Path]:
    """Return how a script of ours begins in the environment of a lock, built if it is not there."""
    # -P: the script's own folder is no place to import from.
    return [ensure(lock, cache).python, "-P", path]


@dataclass(frozen=True)
class OptimizerProgram:
    """A program that makes variants, and what its failure says to a person."""

    name: str
    cannot: str
    """What it could not do, where the model is at fault: `cannot convert this model`."""
    remedy: str
    """What to do then."""
    refusal_remedy: str | None = None
    """What to do where our script itself refuses the model; None: the same."""

    def run(
        self,
        command: Command,
        doing: str,
        *,
        report: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        part_done: PartDone | None = None,
    ) -> None:
        """Run it to its end, showing progress.

        Args:
            command: Program and arguments.
            doing: What is being done, for progress and messages.
            report: Where our script writes why it refuses.
            env: Variables beside those of this process.
            cwd: Where it runs.
            part_done: How its lines tell what part is done; None: they don't.

        Raises:
            BadInput: the model's own fault.
            Unavailable: the machine's: no program, too little memory, a full disk.
        """
        with track(doing, 1 if part_done else None) as update:
            on_line = _telling(update, part_done)
            finished = run(self.name, command, env=env, cwd=cwd, on_line=on_line)
        self.require_success(finished, doing, report)

    def require_success(self, finished: Finished, doing: str, report: Path | None = None) -> None:
        """Raise, as `run` says, where it failed."""
        if finished.status == 0:
            return
        if finished.status == REFUSED and report is not None:
            raise BadInput(doing, report.read_text(), self.refusal_remedy or self.remedy)
        _blame_the_machine(finished, doing)
        logger.info("%s", finished.output)
        raise BadInput(doing, f"{self.name} {self.cannot}: {_reason(finished)}", self.remedy)


def _blame_the_machine(finished: Finished, doing: str) -> None:
    # How subprocess tells of a signal; the kernel's out-of-memory killer sends SIGKILL.
    if finished.status < 0:
        wrong = f"it was ended by signal {-finished.status}"
        remedy = "if memory ran out, close other programs or use a larger machine"
        raise Unavailable(doing, wrong, remedy)
    if tells_of_full_disk(finished.output):
        raise Unavailable(doing, "the disk is full", "make room, then run again")


def _reason(finished: Finished) -> str:
    """Return the last exception it printed, or else the last line with an error, or its end."""
    # The last one: a chain of exceptions ends with the one that was raised to the program.
    exceptions = re.findall(
        r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*$", finished.output, re.MULTILINE
    )
    complaints = re.findall(r"^.*\berror:? .*$", finished.output, re.MULTILINE)
    reason: str = (exceptions or complaints or [finished.tail()])[-1]
    return one_line(reason, LONGEST_REASON)


def steps_done(line: str) -> float | None:
    """Return the part that a line which begins with `[done/total]` says is done."""
    step = re.match(r"\[\s*(\d+)/\s*(\d+)\]", line)
    return int(step[1]) / int(step[2]) if step else None


def _telling(update: Callable[[float], None], part_done: PartDone | None) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        if part_done is not None and (part := part_done(line)) is not None:
            update(min(1.0, part))

    return on_line
