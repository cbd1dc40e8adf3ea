"""Going on as another command of the same Python, as `exec` would have it, with what is imported.

The process stays: its parent, its group, its open files. /proc tells the new command line and
environment.
"""

import atexit
import ctypes
import gc
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

SUPERVISORD = "supervisor.supervisord"
MLFLOW, LAUNCHER = "weighbridge.registry.server", "weighbridge.serving.bento_launcher"
SERVICES = (
    MLFLOW,
    "weighbridge.flows.prefect_platform_server",
    "weighbridge.deployer.deployer",
    "weighbridge.services.watchdog",
    "prefect",
)
PROGRAMS = (*SERVICES, LAUNCHER)
"""Modules that a command may run, for a process to go on as that."""
path: list[str] = []
"""What `sys.path` is when a process begins."""
_execve: Any = os.execve
_execvp: Any = os.execvp
popen: Any = subprocess.Popen


def become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as what a new process of this Python would be."""
    # Files of before are closed: what goes on to hold one must not be found to be garbage, and
    # close what has its number now.
    gc.freeze()
    # Before the next line overwrites it: the C library finds what to drop by its name.
    os.environ.clear()
    tell(command, environment)
    os.environ.update(environment)
    take_signals_as_a_new_process()
    open_streams()
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    sys.path[:] = path
    run_to_end(partial(run, command))


def run(command: Sequence[str]) -> None:
    """Run a module, or the reaper, as Python's command does."""
    module = module_in(command)
    os_functions: Any = os
    os_functions.execve = execve if module == SUPERVISORD else _execve
    os_functions.execvp = _execvp if module else execvp
    start_processes_by(popen)
    if not module:
        sys.argv = [*command[2:]]  # python -I reaper.py ...
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    if module == LAUNCHER:
        from tests.warm_bento import start_worker

        start_processes_by(start_worker)
    # A Bento's worker has moved into an environment that knows no Prefect.
    internals = sys.modules.get("weighbridge.flows.prefect_internals")
    if internals and module not in (SUPERVISORD, LAUNCHER):
        internals.read_settings_again()
    if module == MLFLOW:
        configure_mlflows_logging()
    if command[1] == "-m":
        sys.path.insert(0, str(Path.cwd()))
    sys.argv = [*command[command.index(module) :]]
    forget(lambda name: name == module)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def module_in(command: Sequence[str]) -> str:
    """The module that a command of Python runs, empty where it runs none."""
    words = command[2:] if command[1] == "-P" else command[1:]
    return words[1] if words[0] == "-m" else ""


def execve(program: str, argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Stand for `os.execve` in supervisord, whose programs all begin with the reaper."""
    if len(argv) > 3 and Path(argv[2]).name == "reaper.py":
        become(argv, environment)
    _execve(program, argv, environment)
    raise AssertionError("exec does not return")


def execvp(program: str, argv: Sequence[str]) -> NoReturn:
    """Stand for `os.execvp` in the reaper, which knows the environment by `env`."""
    environment, command = dict(os.environ), list(argv)
    if command[0] == "env":
        del command[0]
        while "=" in command[0]:
            name, _, value = command.pop(0).partition("=")
            environment[name] = value
    if command[0] == sys.executable and module_in(command) in PROGRAMS:
        become(command, environment)
    _execvp(program, argv)
    raise AssertionError("exec does not return")


def start_processes_by(function: Any) -> None:
    module: Any = subprocess
    module.Popen = function


def tell(command: Sequence[str], environment: Mapping[str, str]) -> None:
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


def take_signals_as_a_new_process() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_streams() -> None:
    own: Any = sys
    own.stdin = own.__stdin__ = os.fdopen(0, closefd=False)
    own.stdout = own.__stdout__ = os.fdopen(1, "w", closefd=False)
    own.stderr = own.__stderr__ = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    own.stdout.reconfigure(line_buffering="PYTHONUNBUFFERED" in os.environ)
    own.stderr.reconfigure(line_buffering=True)


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


def configure_mlflows_logging() -> None:
    """Have MLflow set its own up, by the environment of now, as it does when it is imported."""
    sys.modules["mlflow.utils.logging_utils"]._configure_mlflow_loggers("mlflow")


def run_to_end(main: Callable[[], object]) -> NoReturn:
    """Run what a process is for, and end as Python does after it."""
    status = 0
    try:
        main()
    except SystemExit as exc:
        status = status_of(exc)
    except BaseException:
        traceback.print_exc()
        status = 1
    end(status)


def status_of(exit_: SystemExit) -> int:
    if exit_.code is None or isinstance(exit_.code, int):
        return exit_.code or 0
    print(exit_.code, file=sys.stderr)
    return 1


def end(status: int) -> NoReturn:
    """End as Python does, but for what was there before: nobody returns to that."""
    own: Any = threading
    own._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
