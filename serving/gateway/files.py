"""The gateway's files: its desired state, and haproxy's configuration made from it."""

import hashlib
import logging
import resource
import secrets
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.machine import cores
from weighbridge.serving.gateway import config
from weighbridge.serving.gateway.frontend import ANYONE
from weighbridge.serving.gateway.haproxy import alerts, executable
from weighbridge.serving.gateway.models import Front
from weighbridge.serving.gateway.ports import choose_metrics_port

logger = logging.getLogger(__name__)

CONNECTIONS = 4096
THREADS = 4
"""More add nothing: an engine is slower by far than one thread of haproxy."""
CONFIGURATION = "haproxy.cfg"
TARGET_FILES = {".pins", ".health", ".operations", ".models", ".keys", ".pem"}
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
        certificates = {
            front.target: self.certificate(front) for front in desired.fronts if front.args.tls
        }
        return config.render(desired.fronts, settings, certificates)

    def keys(self, front: Front) -> str:
        """Return the file of a target's keys, from what the user's file holds now.

        Raises:
            BadInput: that can't be used, and no keys are in force that could go on being so.
        """
        return self._newest_or_kept(f"{front.target}.keys", lambda: self._read_keys(front))

    def certificate(self, front: Front) -> str:
        """Return a target's certificate and key. Raises as `keys`."""
        return self._newest_or_kept(f"{front.target}.pem", lambda: config.certificate(front))

    def check_users(self, front: Front) -> None:
        """Refuse a target whose own files can't be used. Raises BadInput."""
        # Called for what they raise.
        self._read_keys(front)
        if front.args.tls:
            config.certificate(front)

    def written_keys(self, desired: DesiredState) -> dict[str, set[str]]:
        """Return who is let in by a haproxy that is started now, by target."""
        files = {front.target: self.folder / f"{front.target}.keys" for front in desired.fronts}
        return {
            target: set(file.read_text().split() if file.exists() else ())
            for target, file in files.items()
        }

    def write_keys(self, desired: DesiredState) -> None:
        """Write down who is let in now."""
        for front in desired.fronts:
            _write(self.folder / f"{front.target}.keys", self.keys(front))

    def _read_keys(self, front: Front) -> str:
        return config.keys(front, hashlib.sha256(self.key.encode()).hexdigest())

    def _newest_or_kept(self, name: str, read: Callable[[], str]) -> str:
        """Return what a file of the user's holds now, or what it held when it could be used.

        A file that is gone, or is just being written, must neither open the address nor close it.
        """
        try:
            return read()
        except BadInput as exc:
            copy = self.folder / name
            kept = copy.read_text() if copy.exists() else ""
            if not kept or kept.strip() == ANYONE:
                raise
            logger.warning("%s; what it held before goes on being in force", exc)
            return kept

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
        for front in desired.fronts:
            for file, entries in config.maps(front):
                _write(folder / file, "".join(f"{key} {value}\n" for key, value in entries.items()))
            _write(folder / f"{front.target}.keys", self.keys(front))
            if front.args.tls:
                _write(folder / f"{front.target}.pem", self.certificate(front))
        text = self.render(desired)
        _write(folder / CONFIGURATION, text)
        # Last: until it is replaced, the configuration before names the files of targets that go.
        with_tls = {front.target: bool(front.args.tls) for front in desired.fronts}
        for path in folder.iterdir():
            is_needed = path.stem in with_tls and (path.suffix != ".pem" or with_tls[path.stem])
            if path.suffix in TARGET_FILES and not is_needed:
                path.unlink()
        return text


def _write(path: Path, text: str) -> None:
    """Replace a file that its owner alone may read: keys stand in some."""
    replace_text(path, text, mode=0o600)
