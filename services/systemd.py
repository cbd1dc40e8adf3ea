"""A systemd unit that brings the platform up when the machine starts, and again where its
supervisord was killed.

::

    HOME/secrets/environment    variables of the unit, some of which may be secret (mode 0600)
"""

import fnmatch
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from weighbridge.core.disk import recording
from weighbridge.core.files import replace_text
from weighbridge.core.settings import Settings
from weighbridge.services.programs import inherited, service_names

NAME = "weighbridge"
START_SECONDS = 900
"""More than the services may take together, databases of a first start included."""
STOP_SECONDS = 300
"""Versions that serve finish what they have."""


def install(settings: Settings) -> tuple[Path, list[str]]:
    """Write the unit, for this user or with root's rights for the machine, and its environment.

    Returns:
        The unit's file, and the commands that make systemd use it.

    Raises:
        Unavailable: one of the files cannot be written.
    """
    environment = settings.home / "secrets" / "environment"
    variables = {**_kept(os.environ, settings), "WEIGHBRIDGE_HOME": str(settings.home)}
    is_root = os.getuid() == 0
    path = unit_folder(is_root) / f"{NAME}.service"
    text = unit(settings.home, environment, "multi-user" if is_root else "default")
    with recording(environment):
        environment.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_text(environment, _environment_file(variables), mode=0o600)
    with recording(path):
        replace_text(path, text)
    systemctl = "systemctl" if is_root else "systemctl --user"
    # One that runs already would not be systemd's to watch.
    commands = ["weighbridge down", f"{systemctl} daemon-reload"]
    commands.append(f"{systemctl} enable --now {NAME}")
    # Else a user's units end with the user's last session, and do not start before the first.
    return path, commands if is_root else [*commands, "loginctl enable-linger"]


def unit_folder(is_root: bool) -> Path:
    """Return the folder in which systemd looks for units of the machine, or of this user."""
    if is_root:
        return Path("/etc/systemd/system")
    configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(configuration) / "systemd" / "user"


def unit(home: Path, environment: Path, wanted_by: str) -> str:
    """Return the unit's text.

    Args:
        home: of the installation.
        environment: file with the variables that the platform is to have.
        wanted_by: target at which it starts, without its ending.
    """
    weighbridge = f"{_word(sys.executable)} -m weighbridge.cli.main"
    # - forking, PIDFile: systemd watches supervisord, which `up` leaves behind.
    # - ExecStart with a minus: where one service does not start, what serves must not be stopped.
    # - on-failure: `weighbridge down` ends it well, and then it stays down.
    return f"""\
# Written by `weighbridge up --install`: changes made here are lost.
[Unit]
Description=Weighbridge, {_escaped(str(home))}
Wants=network-online.target
After=network-online.target postgresql.service
StartLimitIntervalSec=0

[Service]
Type=forking
PIDFile={_escaped(str(home / "run" / "supervisord.pid"))}
EnvironmentFile={_escaped(str(environment))}
ExecStart=-{weighbridge} up
ExecStop={weighbridge} down
Restart=on-failure
RestartSec=5
TimeoutStartSec={START_SECONDS}
TimeoutStopSec={STOP_SECONDS}
LimitNOFILE=65536

[Install]
WantedBy={wanted_by}.target
"""


def _kept(variables: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return what services inherit of these variables, and our own settings."""
    inherits = {
        pattern for name in service_names(settings) for pattern in inherited(name, settings)
    }
    return {
        name: value
        for name, value in variables.items()
        if "\n" not in value
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in {*inherits, "WEIGHBRIDGE_*"})
    }


def _environment_file(variables: Mapping[str, str]) -> str:
    """Return variables as systemd's `EnvironmentFile=` takes them."""
    lines = []
    for name, value in sorted(variables.items()):
        # What a shell would expand between quotes is escaped as a shell wants it.
        quoted = re.sub(r'([\\"$`])', r"\\\1", value)
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)


def _escaped(text: str) -> str:
    """Return a value as units take it: they expand `%h` and the like."""
    return text.replace("%", "%%")


def _word(text: str) -> str:
    """Return one word of a command line."""
    quoted = _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{quoted}"'
