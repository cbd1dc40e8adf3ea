"""The gateway's files: its desired state, and haproxy's configuration made from it."""

import hashlib
import resource
import secrets
import subprocess
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.machine import cores
from weighbridge.serving.gateway import config
from weighbridge.serving.gateway.haproxy import alerts, executable
from weighbridge.serving.gateway.models import Front
from weighbridge.serving.gateway.ports import choose_metrics_port

CONNECTIONS = 4096
THREADS = 4
"""More add nothing: an engine is slower by far than one thread of haproxy."""
CONFIGURATION = "haproxy.cfg"
TARGET_FILES = {".pins", ".health", ".operations", ".keys"}
"""Endings of the files that each target has beside it."""


class DesiredState(BaseModel):
    """What the gateway shall be."""

    model_config = ConfigDict(frozen=True)

    metrics_port: int
    fronts: tuple[Front, ...] = ()


class GatewayFiles:
    """The files of one gateway; whoever changes them holds the gateway's lock."""

    def __init__(self, state: Path, folder: Path, peers: Path) -> None:
        self.folder = folder
        self._state = state
        self._peers = peers

    @property
    def key(self) -> str:
        """An API key of our own that opens every target; made when first asked for."""
        path = self.folder / "key"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, secrets.token_urlsafe(32))
        return path.read_text()

    def load(self) -> DesiredState | None:
        """Return the desired state; None before the gateway was first asked for.

        Raises:
            Unavailable: the file is damaged.
        """
        try:
            return DesiredState.model_validate_json(self._state.read_text())
        except FileNotFoundError:
            return None
        except ValidationError as exc:
            raise Unavailable(
                f"reading {self._state}", "it is damaged", "remove it, then deploy again"
            ) from exc

    def load_or_begin(self) -> DesiredState:
        """Return the desired state, which is at first that of no target."""
        return self.load() or DesiredState(metrics_port=choose_metrics_port())

    def render(self, desired: DesiredState) -> str:
        """Return haproxy's configuration. Raises as `config.render`."""
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        unlimited = open_files == resource.RLIM_INFINITY
        # A request takes a file for the client and one for the engine.
        connections = CONNECTIONS if unlimited else min(CONNECTIONS, open_files // 3)
        settings = config.GlobalSettings(
            desired.metrics_port, self._peers, connections, min(cores(), THREADS)
        )
        return config.render(desired.fronts, settings)

    def check(self, desired: DesiredState) -> None:
        """Have haproxy read what would be written, in a folder of its own.

        Raises:
            BadInput: haproxy refuses it.
            Unavailable: haproxy is not installed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="check-") as folder:
            self._write_configuration(Path(folder), desired)
            command = [executable(), "-c", "-f", CONFIGURATION]
            checked = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        if checked.returncode != 0:
            # One that was killed says nothing.
            said = alerts(checked.stderr) or f"nothing, and ends with {checked.returncode}"
            raise BadInput("configuring the gateway", f"haproxy says: {said}")

    def write(self, desired: DesiredState) -> str:
        """Write everything and return haproxy's configuration as it was written."""
        # First, since after a crash it says how everything else is to be.
        _write(self._state, desired.model_dump_json(indent=1))
        return self._write_configuration(self.folder, desired)

    def _write_configuration(self, folder: Path, desired: DesiredState) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        own_key = hashlib.sha256(self.key.encode()).hexdigest()
        for front in desired.fronts:
            for file, entries in config.maps(front):
                _write(folder / file, "".join(f"{key} {value}\n" for key, value in entries.items()))
            if front.args.api_keys:
                _write(folder / f"{front.target}.keys", config.keys(front, own_key))
        text = self.render(desired)
        _write(folder / CONFIGURATION, text)
        # Last: until it is replaced, the configuration before names the files of targets that go.
        targets = {front.target for front in desired.fronts}
        for path in folder.iterdir():
            if path.suffix in TARGET_FILES and path.stem not in targets:
                path.unlink()
        return text


def _write(path: Path, text: str) -> None:
    """Replace a file that its owner alone may read: keys stand in some."""
    replace_text(path, text, mode=0o600)
