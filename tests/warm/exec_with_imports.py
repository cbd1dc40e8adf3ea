"""Go on as another command of the same Python, as `exec` would have it, with what is imported.

The process stays: its parent, its session, its open files. /proc tells the new command line and
environment. The standard library alone: origins of every environment import this.
"""

import atexit
import ctypes
import gc
import logging
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

path: list[str] = []
"""What `sys.path` is when a process begins."""
preparations: list[Callable[[str], object]] = []
"""Called with the name of the module that is run next, empty for a script."""
_execvp: Any = os.execvp


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as what a new process of this Python would be."""
    # Files of before are closed: what goes on to hold one must not be found to be garbage, and
    # close what has its number now.
    gc.freeze()
    # Before the next line overwrites it: the C library finds what to drop by its name.
    os.environ.clear()
    _tell(command, environment)
    os.environ.update(environment)
    _take_signals_as_a_new_process()
    _open_streams("PYTHONUNBUFFERED" in environment or "-u" in command[1:3])
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    sys.path[:] = path
    _run_to_end(partial(_run, command))


def _tell(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Write command line and environment to where /proc reads them."""
    # proc(5) counts from 1: `arg_start` to `env_end` are 48 to 51, and the name, whose end we look
    # for, is 2.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arg_start, arg_end, env_start, env_end = map(int, fields[45:49])
    variables = [f"{name}={value}" for name, value in environment.items()]
    for texts, start, size in (
        (command, arg_start, arg_end - arg_start),
        (variables, env_start, env_end - env_start),
    ):
        block = b"".join(os.fsencode(text) + b"\0" for text in texts)
        if len(block) >= size:
            raise ValueError(f"{len(block)} bytes do not fit: give the origin more padding")
        ctypes.memmove(start, block.ljust(size, b"\0"), size)


def _take_signals_as_a_new_process() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams(unbuffered: bool) -> None:
    own: Any = sys
    own.stdin = own.__stdin__ = os.fdopen(0, closefd=False)
    own.stdout = own.__stdout__ = os.fdopen(1, "w", closefd=False)
    own.stderr = own.__stderr__ = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    own.stdout.reconfigure(line_buffering=unbuffered)
    own.stderr.reconfigure(line_buffering=True)


def _run(command: Sequence[str]) -> None:
    """Run a module, code or a script, as Python's command does."""
    options = [*takewhile(("-I", "-P", "-u").__contains__, command[1:])]
    words = [*command[1 + len(options) :]]
    is_path_safe = not {"-I", "-P"}.isdisjoint(options)
    module = words[1] if words[0] == "-m" else ""
    os_functions: Any = os
    # The reaper goes on as the command that it guards.
    os_functions.execvp = execvp if Path(words[0]).name == "reaper.py" else _execvp
    for prepare in preparations:
        prepare(module)
    if module:
        sys.argv = words[1:]
        sys.path[:0] = [] if is_path_safe else [str(Path.cwd())]
        forget(lambda name: name == module)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})  # noqa: S102 - as `python -c` does
    else:
        sys.argv = words
        sys.path[:0] = [] if is_path_safe else [str(Path(words[0]).parent)]
        runpy.run_path(words[0], run_name="__main__")


def execvp(program: str, argv: Sequence[str]) -> NoReturn:
    """Stand for `os.execvp` in the reaper, which knows the environment by `env`."""
    environment, command = dict(os.environ), list(argv)
    if command[0] == "env":
        del command[0]
        while "=" in command[0]:
            name, _, value = command.pop(0).partition("=")
            environment[name] = value
    if command[0] == sys.executable:
        become(command, environment)
    _execvp(program, argv)
    raise AssertionError("exec does not return")


def forget(is_one: Callable[[str], bool]) -> None:
    """Have these modules imported anew where they are asked for."""
    for name in [name for name in sys.modules if is_one(name)]:
        module = sys.modules.pop(name)
        package, _, child = name.rpartition(".")
        # `from package import child` takes what it has.
        if getattr(sys.modules.get(package), child, None) is module:
            delattr(sys.modules[package], child)


def reset_logging() -> None:
    """Forget what libraries set up when they were imported: Prefect does so by its settings."""
    for name in ("", *logging.root.manager.loggerDict):
        logger = logging.getLogger(name or None)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET if name else logging.WARNING)
    sys.modules["prefect.logging.configuration"].PROCESS_LOGGING_CONFIG.clear()


def _run_to_end(main: Callable[[], object]) -> NoReturn:
    """Run what a process is for, and end as Python does after it, but for what was there before:
    nobody returns to that.
    """
    status = 0
    try:
        main()
    except SystemExit as exc:
        status = _status_of(exc)
    except BaseException:
        traceback.print_exc()
        status = 1
    own: Any = threading
    own._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status_of(exit_: SystemExit) -> int:
    if exit_.code is None or isinstance(exit_.code, int):
        return exit_.code or 0
    print(exit_.code, file=sys.stderr)
    return 1
