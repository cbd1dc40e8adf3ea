"""CPU time of commands, all their processes counted."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).parent / "weighbridge")


def cpu_seconds(command: Sequence[str | Path], env: Mapping[str, str]) -> float:
    """Return user and system time of a command and of every process it waited for.

    Raises:
        RuntimeError: it failed; the message holds what it wrote.
    """
    arguments = [str(argument) for argument in command]
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        # wait4 alone tells what one child used; getrusage counts all of them.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(
            f"{' '.join(arguments)} ended with {process.returncode}:\n{output[-4000:]}"
        )
    return usage.ru_utime + usage.ru_stime


def bytecode_note() -> None:
    """Print a note where every start compiles what it imports: pip leaves bytecode behind, uv and
    some images don't.
    """
    import pydantic

    source = Path(pydantic.__file__)
    if not Path(importlib.util.cache_from_source(str(source))).exists():
        print(
            "note: this environment holds no bytecode, so every start compiles what it imports; "
            f"cure: python -m compileall -q {source.parent.parent}"
        )
