"""Our own supervisord: it keeps what is served alive after the command that started it has ended.

::

    HOME/run/supervisord.conf     written here; includes programs/*.ini, one per program
    HOME/run/supervisor.sock      its XML-RPC; in a private temporary folder where this path is too
        long
    HOME/run/logs/                rotated
"""

import configparser
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from weighbridge.core import own_secrets
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.formatting import one_line
from weighbridge.core.private_folders import make_private
from weighbridge.serving.supervised_program import Program, ProgramState, escaped
from weighbridge.serving.unix_sockets import make_socket_folder, short_socket

START_TIMEOUT = 20.0
STOP_TIMEOUT = 60.0
CALL_TIMEOUT = 10.0
"""Seconds that a call may take; those that stop a program come back when it has ended."""
_SLOW_CALLS = frozenset({"stopProcessGroup"})

# Fault codes of `supervisor.xmlrpc.Faults`.
_BAD_NAME, _ALREADY_STARTED, _NOT_RUNNING, _ALREADY_ADDED, _STILL_RUNNING = 10, 60, 70, 90, 91


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises OSError where nobody listens, or does not in time."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket. That of supervisor's own waits for ever, and brings its whole
    server.
    """

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__()
        self._path, self._timeout = path, timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _Connection(self._path, self._timeout)
        # Where the base class looks for what it has to close.
        self._connection = host, connection
        return connection


class Supervisor:
    """The supervisord of one Weighbridge home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "run"
        self.logs = self.folder / "logs"
        self._programs = self.folder / "programs"

    @property
    def socket(self) -> Path:
        return short_socket(self.folder / "supervisor.sock")

    def running(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError, xmlrpc.client.Error):
            return bool(self._call("getState")["statename"] == "RUNNING")
        return False

    def ensure(self) -> None:
        """Start it, with every program it had, if it does not run; it outlives this process.

        Raises:
            Unavailable: it does not start.
        """
        make_private(self.folder.parent)
        for folder in (self.folder, self.logs, self._programs):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "supervisord.lock"):
            if self.running():
                return
            make_socket_folder(self.socket, self.folder)
            config = self.folder / "supervisord.conf"
            # Written at every start: an update may have changed what is in it.
            replace_text(config, self._configuration())
            command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)]
            # A run of the platform's worker may be what starts it: its secrets are not for those
            # programs that serve.
            variables = {
                key: value for key, value in os.environ.items() if key not in own_secrets.VARIABLES
            }
            started = subprocess.run(
                command,
                cwd=self.folder,
                env=variables,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            if started.returncode != 0:
                message = one_line(started.stderr or started.stdout)[-400:]
                raise Unavailable("starting supervisord", message, f"its configuration: {config}")
            self._await_start()

    def add(self, program: Program) -> None:
        """Keep `program` running from now on, after a restart of supervisord too; return before it
        is up.

        Raises:
            Unavailable: supervisord refuses it.
        """
        replace_text(self._programs / f"{program.name}.ini", program.ini())
        # Added, changed, removed.
        _, changed, _ = self._call("reloadConfig")[0]
        if program.name in changed:
            self._drop(program.name)
        try:
            # A program of its own is a group of the same name.
            self._call("addProcessGroup", program.name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _ALREADY_ADDED:
                raise self._refused(f"adding {program.name}", fault) from fault
        try:
            # One that was added starts by itself; one that was there may have been given up.
            self._call("startProcess", program.name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _ALREADY_STARTED:
                raise self._refused(f"starting {program.name}", fault) from fault

    def remove(self, name: str) -> None:
        """Stop a program, wait until it has ended, and forget it."""
        (self._programs / f"{name}.ini").unlink(missing_ok=True)
        if self.running():
            self._drop(name)

    def kill(self, name: str) -> bool:
        """End a program's process, whatever it does, so that it is started again.

        Returns:
            Whether there was one.
        """
        state = self.state(name)
        if state is None or not state.up or not state.pid:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, signal.SIGKILL)
        return True

    def mark_of(self, name: str) -> str:
        """Return what a program's processes carry in their environment; empty: of any program."""
        return f"{self.home}:{name}"

    def state(self, name: str) -> ProgramState | None:
        """Return a program's state; None where supervisord does not know it or does not run."""
        return next((state for state in self.states() if state.name == name), None)

    def states(self) -> list[ProgramState]:
        """Return the state of every program."""
        try:
            rows: Any = self._call("getAllProcessInfo")
        except (OSError, xmlrpc.client.Error):
            return []
        return [
            ProgramState(info["name"], info["statename"], info["pid"], float(info["start"]))
            for info in rows
        ]

    def names(self) -> list[str]:
        """Return every program that is configured, whether supervisord runs or not."""
        return sorted(path.stem for path in self._programs.glob("*.ini"))

    def shutdown(self, forget: Collection[str] = ()) -> None:
        """Stop every program and supervisord itself, and return when all have ended.

        Those to forget are not started again by the next `ensure`.
        """
        for name in forget:
            (self._programs / f"{name}.ini").unlink(missing_ok=True)
        try:
            pid = int(self._call("getPID"))
            self._call("shutdown")
        except (OSError, xmlrpc.client.Error):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            self._await_end(psutil.Process(pid))

    def _await_end(self, process: psutil.Process) -> None:
        """Return when supervisord has ended. Raises psutil.TimeoutExpired where it does not."""
        deadline = time.monotonic() + STOP_TIMEOUT
        # One that has ended is a zombie until its parent asks for it: the first process of a
        # container does that seconds later, or never.
        while process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                raise psutil.TimeoutExpired(STOP_TIMEOUT, process.pid)
            time.sleep(0.03)
            # It looks once a second at what has ended, and whenever it is called.
            self.running()

    def _drop(self, name: str) -> None:
        """Stop and forget a program, where supervisord has it at all."""
        self._call_for_group("stopProcessGroup", name)
        deadline = time.monotonic() + STOP_TIMEOUT
        # One that somebody else began to stop is still stopping when the call to stop it comes
        # back.
        while self._call_for_group("removeProcessGroup", name) == _STILL_RUNNING:
            if time.monotonic() > deadline:
                log = self.logs / "supervisord.log"
                raise Unavailable(
                    f"stopping {name}", f"it still runs after {STOP_TIMEOUT:.0f} s", f"see {log}"
                )
            time.sleep(0.1)

    def _call_for_group(self, method: str, name: str) -> int | None:
        """Call a method about a program and return the code of a fault that does not matter, None
        of none.
        """
        try:
            self._call(method, name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in {_BAD_NAME, _NOT_RUNNING, _STILL_RUNNING}:
                raise self._refused(f"stopping {name}", fault) from fault
            return int(fault.faultCode)
        return None

    def _refused(self, doing: str, fault: xmlrpc.client.Fault) -> Unavailable:
        return Unavailable(
            doing,
            f"supervisord says: {fault.faultString}",
            f"its log: {self.logs / 'supervisord.log'}",
        )

    def _call(self, method: str, *arguments: Any) -> Any:
        """Return what an XML-RPC call returns. Raises OSError where supervisord does not listen."""
        # The address is for form's sake: the transport knows the socket.
        transport = _Transport(self.socket, None if method in _SLOW_CALLS else CALL_TIMEOUT)
        with xmlrpc.client.ServerProxy("http://supervisor", transport=transport) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def _configuration(self) -> str:
        config = configparser.RawConfigParser()
        config["unix_http_server"] = {"file": escaped(str(self.socket)), "chmod": "0700"}
        config["supervisord"] = {
            "logfile": escaped(str(self.logs / "supervisord.log")),
            "logfile_maxbytes": "10MB",
            "logfile_backups": "3",
            "pidfile": escaped(str(self.folder / "supervisord.pid")),
            "childlogdir": escaped(str(self.logs)),
            "directory": escaped(str(self.folder)),
        }
        if os.getuid() == 0:
            config["supervisord"]["user"] = "root"  # said, so that it does not complain
        config["rpcinterface:supervisor"] = {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        }
        config["include"] = {"files": "programs/*.ini"}
        with tempfile.TemporaryFile("w+") as stream:
            config.write(stream)
            stream.seek(0)
            return stream.read()

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self.running():
            if time.monotonic() > deadline:
                remedy = f"its log: {self.logs / 'supervisord.log'}"
                wrong = f"it did not answer within {START_TIMEOUT:.0f} s"
                raise Unavailable("starting supervisord", wrong, remedy)
            time.sleep(0.05)
