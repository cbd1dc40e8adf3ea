"""A program under supervisord: its section of the configuration, and its state."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import quoted

REAPER = Path(__file__).with_name("reaper.py")


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
    inherited: Sequence[str] | None = None
    """Patterns of the variables that it gets from supervisord's own environment; None: all."""
    mark: str | None = None
    """It and all it starts carry this in their environment: so they are found again."""
    kill_leftovers: bool = False
    """Before it starts, what still carries the mark is killed: children of one before that was
    killed may hold its port.
    """
    umask: str = ""
    """Of the files it makes, in octal; empty: supervisord's."""
    retries: int = 10
    """Starts in a row that fail before it is given up."""

    def ini(self) -> str:
        """Return its section of supervisord's configuration.

        Raises:
            Unavailable: a value has what an ini file cannot hold.
        """
        # Through `env`: supervisord's own `environment=` strips quotes off the ends of values.
        variables = [f"{key}={value}" for key, value in sorted(self.environment.items())]
        options = ["--secrets", str(self.secrets)] if self.secrets else []
        options += ["--inherit", ",".join(self.inherited)] if self.inherited is not None else []
        options += ["--mark", self.mark] if self.mark else []
        options += ["--kill-leftovers"] if self.kill_leftovers else []
        command = [
            sys.executable,
            "-I",
            str(REAPER),
            "--parent",
            "session",
            *options,
            "--",
            "env",
            *variables,
            *self.command,
        ]
        section = {
            "command": escaped(shlex.join(command)),
            "directory": escaped(str(self.directory)),
            "autostart": "true",
            # Whatever its exit status: a server that ends with 0 has to come back as well.
            "autorestart": "true",
            # What ends earlier did not start: so a program that cannot start is given up.
            "startsecs": "10",
            "startretries": str(self.retries),
            "stopsignal": "TERM",
            "stopwaitsecs": str(self.stop_seconds),
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": escaped(str(self.log)),
            "stdout_logfile_maxbytes": "10MB",
            # As many as gateway/access_log.py follows: its BACKUPS.
            "stdout_logfile_backups": "3",
        }
        if self.umask:
            section["umask"] = self.umask
        return f"[program:{self.name}]\n" + "".join(
            f"{key}={value}\n" for key, value in section.items()
        )


@dataclass(frozen=True)
class ProgramState:
    """What supervisord says about a program."""

    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL."""
    pid: int
    since: float
    """Unix time of its last start."""

    @property
    def up(self) -> bool:
        """Whether it runs, or is about to."""
        return self.state in {"STARTING", "RUNNING"}


def logged_since(log: Path, start: int) -> str:
    """Return what was logged since a log was `start` bytes long; empty where there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        # A log that is shorter than it was has been rotated: all of it is new.
        stream.seek(start if start <= log.stat().st_size else 0)
        return stream.read().decode(errors="replace")


def escaped(text: str) -> str:
    """Return a value as supervisord's configuration takes it: it expands `%(name)s`.

    Raises:
        Unavailable: it has a line break, or what begins a comment there.
    """
    if re.search(r"[\r\n]|\s[;#]", text):
        wrong = f"a line break, or a space before ; or #, cannot stand in {quoted(text)}"
        raise Unavailable("configuring supervisord", wrong, "choose another name")
    return text.replace("%", "%%")
