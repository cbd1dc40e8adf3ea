"""Our own supervisord: it keeps what is served alive after the command that started it has gone.

::

    HOME/run/supervisord.conf     written here; includes programs/*.ini, one per program
    HOME/run/supervisor.sock      its XML-RPC; in a private temporary folder where this path is too
        long
    HOME/run/logs/                rotated
"""

import configparser
import contextlib
import hashlib
import http.client
import logging
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text

logger = logging.getLogger("weighbridge.supervisor")

LONGEST_SOCKET_PATH = 90
"""Bytes: the kernel allows 107, and supervisord first binds to a name that has its process id
appended.
"""
START_TIMEOUT = 20.0
STOP_TIMEOUT = 60.0
REAPER = Path(__file__).with_name("reaper.py")

_BAD_NAME, _ALREADY_STARTED, _NOT_RUNNING, _ALREADY_ADDED, _STILL_RUNNING = 10, 60, 70, 90, 91


@dataclass(frozen=True)
class Program:
    """A command that supervisord keeps running."""

    name: str
    command: Sequence[str]
    log: Path
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: int = 30
    """Between SIGTERM and SIGKILL."""
    secrets: Path | None = None
    """Further variables, as JSON in a file that its owner alone can read."""
    mark: str = ""
    """It and all it starts carry this in their environment: so they are found again."""
    sweep: bool = False
    """Children of one before that died without a word are killed before it starts; they may hold
    its port.
    """
    retries: int = 10
    """Starts in a row that fail before it is given up."""

    def ini(self) -> str:
        """Its section of supervisord's configuration."""
        # Through `env`: supervisord's own `environment=` strips quotes off the ends of values.
        variables = [f"{key}={value}" for key, value in sorted(self.environment.items())]
        options = ["--secrets", str(self.secrets)] if self.secrets else []
        options += ["--mark", self.mark] if self.mark else []
        options += ["--sweep"] if self.sweep else []
        words = [
            sys.executable,
            "-I",
            str(REAPER),
            *options,
            "--",
            "env",
            *variables,
            *self.command,
        ]
        if any("\n" in word for word in words):
            raise Unavailable(
                "configuring supervisord", f"a line break in the command of {self.name}"
            )
        section = {
            "command": _escaped(shlex.join(words)),
            "directory": _escaped(str(self.directory)),
            "autostart": "true",
            "autorestart": "true",
            # Ended before this: not a start that counts, so that one that cannot start is given up.
            "startsecs": "10",
            "startretries": str(self.retries),
            "stopsignal": "TERM",
            "stopwaitsecs": str(self.stop_seconds),
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": _escaped(str(self.log)),
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": "3",
        }
        return f"[program:{self.name}]\n" + "".join(
            f"{key}={value}\n" for key, value in section.items()
        )


@dataclass(frozen=True)
class State:
    """What supervisord says about a program."""

    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL."""
    pid: int
    since: float

    @property
    def up(self) -> bool:
        return self.state in {"STARTING", "RUNNING"}


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.close()
            raise


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = _UnixConnection(self._path)
        self._connection = host, connection  # what the proxy closes
        return connection


class Supervisor:
    """The supervisord of one Weighbridge home."""

    def __init__(self, home: Path) -> None:
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
        """Start it, with every program it had, if it does not run. It outlives this process.

        Raises:
            Unavailable: it does not start.
        """
        for folder in (self.folder, self.logs, self._programs):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "supervisord.lock"):
            if self.running():
                return
            make_socket_folder(self.socket, self.folder)
            config = self.folder / "supervisord.conf"
            replace_text(config, self._configuration())
            command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)]
            done = subprocess.run(
                command, cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if done.returncode != 0:
                words = " ".join((done.stderr or done.stdout).split())[-400:]
                raise Unavailable("starting supervisord", words, f"its configuration: {config}")
            self._await(True, START_TIMEOUT)

    def add(self, program: Program) -> None:
        """Keep `program` running from now on, after a restart of supervisord too. Returns before it
        is up.
        """
        replace_text(self._programs / f"{program.name}.ini", program.ini())
        _, changed, _ = self._call("reloadConfig")[0]
        if program.name in changed:
            self._drop(program.name)
        try:
            self._call("addProcessGroup", program.name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _ALREADY_ADDED:
                raise self._refused(f"adding {program.name}", fault) from fault
        try:
            self._call("startProcess", program.name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != _ALREADY_STARTED:
                raise self._refused(f"starting {program.name}", fault) from fault

    def remove(self, name: str) -> None:
        """Stop a program, wait until it has ended, and forget it."""
        (self._programs / f"{name}.ini").unlink(missing_ok=True)
        if self.running():
            self._drop(name)

    def state(self, name: str) -> State | None:
        """How a program is; None where supervisord does not know it or does not run."""
        return next((state for state in self.states() if state.name == name), None)

    def states(self) -> list[State]:
        """Every program."""
        try:
            found: Any = self._call("getAllProcessInfo")
        except (OSError, xmlrpc.client.Error):
            return []
        return [
            State(info["name"], info["statename"], info["pid"], float(info["start"]))
            for info in found
        ]

    def names(self) -> list[str]:
        """Every program that is configured, whether supervisord runs or not."""
        return sorted(path.stem for path in self._programs.glob("*.ini"))

    def shutdown(self, forget: Collection[str] = ()) -> None:
        """Stop every program and supervisord itself; returns when all have ended.

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
            psutil.Process(pid).wait(STOP_TIMEOUT)

    def _drop(self, name: str) -> None:
        """Stop and forget, where it is there at all."""
        self._tell_group("stopProcessGroup", name)
        deadline = time.monotonic() + STOP_TIMEOUT
        # One that somebody else began to stop is still stopping when the call to stop it comes
        # back.
        while self._tell_group("removeProcessGroup", name) == _STILL_RUNNING:
            if time.monotonic() > deadline:
                log = self.logs / "supervisord.log"
                raise Unavailable(
                    f"stopping {name}", f"it still runs after {STOP_TIMEOUT:.0f} s", f"see {log}"
                )
            time.sleep(0.1)

    def _tell_group(self, method: str, name: str) -> int:
        """Call a method about a program; 0, or the code of a fault that can be lived with."""
        try:
            self._call(method, name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in {_BAD_NAME, _NOT_RUNNING, _STILL_RUNNING}:
                raise self._refused(f"stopping {name}", fault) from fault
            return int(fault.faultCode)
        return 0

    def _refused(self, doing: str, fault: xmlrpc.client.Fault) -> Unavailable:
        return Unavailable(
            doing,
            f"supervisord says: {fault.faultString}",
            f"its log: {self.logs / 'supervisord.log'}",
        )

    def _call(self, method: str, *arguments: Any) -> Any:
        """One XML-RPC call. Raises OSError where supervisord does not listen."""
        with xmlrpc.client.ServerProxy(
            "http://supervisor", transport=_UnixTransport(self.socket)
        ) as proxy:
            return getattr(proxy.supervisor, method)(*arguments)

    def _configuration(self) -> str:
        config = configparser.RawConfigParser()
        config["unix_http_server"] = {"file": _escaped(str(self.socket)), "chmod": "0700"}
        config["supervisord"] = {
            "logfile": _escaped(str(self.logs / "supervisord.log")),
            "logfile_maxbytes": "10MB",
            "logfile_backups": "3",
            "pidfile": _escaped(str(self.folder / "supervisord.pid")),
            "childlogdir": _escaped(str(self.logs)),
            "directory": _escaped(str(self.folder)),
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

    def _await(self, wanted: bool, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self.running() is not wanted:
            if time.monotonic() > deadline:
                remedy = f"its log: {self.logs / 'supervisord.log'}"
                raise Unavailable(
                    "starting supervisord", f"it did not answer within {timeout:.0f} s", remedy
                )
            time.sleep(0.05)


def short_socket(path: Path) -> Path:
    """The path itself, or one in a private temporary folder.

    There where the kernel would find it too long, or haproxy a variable in it, which it looks for
    even between quotes.
    """
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH and "$" not in str(path):
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"weighbridge-{os.getuid()}" / f"{name}.sock"


def make_socket_folder(path: Path, home: Path) -> None:
    """Make a socket's folder, private where it is not `home` itself.

    Raises:
        Unavailable: it is there and others may write to it.
    """
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder != home and (folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077):
        remedy = "remove it, or shorten WEIGHBRIDGE_HOME"
        raise Unavailable("starting supervisord", f"{folder} is not private to you", remedy)
