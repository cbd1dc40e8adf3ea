"""haproxy as a program of our supervisord: started, reloaded, and brought to the desired state."""

import contextlib
import time
from collections.abc import Mapping, Set
from pathlib import Path

from weighbridge.core.errors import Unavailable
from weighbridge.serving.gateway import config
from weighbridge.serving.gateway.files import CONFIGURATION, DesiredState
from weighbridge.serving.gateway.haproxy import ALERT, Master, NotAnswering, alerts, executable
from weighbridge.serving.gateway.runtime_commands import DELETE, key_commands, runtime_commands
from weighbridge.serving.supervised_program import Program, logged_since
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.unix_sockets import make_socket_folder

PROGRAM = "gateway"
TIMEOUT = 30.0
"""Seconds until a running haproxy is what it was asked to be."""
LOG_DELAY = 2.0
"""Seconds that haproxy's words may take to come to its log."""


class ConfigurationRejected(Unavailable):
    """haproxy read the new configuration and went on with the one before."""


class HaproxyProcess:
    """The haproxy of one gateway; whoever changes it holds the gateway's lock."""

    def __init__(self, supervisor: Supervisor, folder: Path, socket: Path) -> None:
        self.master = Master(socket)
        self._supervisor = supervisor
        self._folder = folder
        self._socket = socket

    @property
    def log(self) -> Path:
        """JSON lines, one per request, among haproxy's own messages."""
        return self._supervisor.logs / f"{PROGRAM}.log"

    def is_current(self, text: str, keys: Mapping[str, Set[str]]) -> bool:
        """Whether it runs with this configuration, and lets in who has these keys, by target."""
        if not self.runs(text):
            return False
        try:
            return not any(self._key_commands(worker, keys) for worker in self.master.workers())
        except NotAnswering:
            return False

    def reconcile(self, desired: DesiredState, text: str, keys: Mapping[str, Set[str]]) -> None:
        """Return when the processes are what the files say, and desired.

        Args:
            desired: what they shall be.
            text: the configuration that is on the disk.
            keys: entries of the lists of keys, by target.

        Raises:
            ConfigurationRejected: haproxy does not take the configuration.
            Unavailable: it does not start, or is not as desired in time.
        """
        description = _description(text)
        deadline = time.monotonic() + TIMEOUT
        log_start = self.log.stat().st_size if self.log.exists() else 0
        reloads_before: int | None = None
        problem: str | None = None
        while True:
            try:
                worker, *_ = self.master.workers()
                # First, and also where a reload comes next: it leaves connections to this one.
                self.update_keys(keys)
                if self.master.description(worker) == description:
                    problem = self._update(worker, desired)
                    if problem is None:
                        return
                elif reloads_before is None:
                    # Else the conversations that clients have with a version would be forgotten.
                    if self.master.can_hand_over(worker):
                        reloads_before = self.master.reloads().done
                        self.master.reload()
                else:
                    self._check_reload(reloads_before, log_start)
            except (NotAnswering, ValueError):  # no process, or a master without a worker
                self._start()
            if time.monotonic() > deadline:
                wrong = problem or self._complaint(log_start)
                raise Unavailable(
                    "changing the gateway",
                    f"it is not what was asked for after {TIMEOUT:.0f} s: {wrong}",
                    f"its log: {self.log}",
                )
            time.sleep(0.02)

    def runs(self, text: str) -> bool:
        """Whether haproxy runs this configuration, so that all else changes at run time."""
        try:
            worker, *_ = self.master.workers()
            return self.master.description(worker) == _description(text)
        except (NotAnswering, ValueError):  # no process, or a master without a worker
            return False

    def _check_reload(self, reloads_before: int, log_start: int) -> None:
        reloads = self.master.reloads()
        if reloads.done > reloads_before and reloads.failed:
            wrong = f"haproxy refuses: {self._complaint(log_start)}"
            raise ConfigurationRejected("changing the gateway", wrong, f"its log: {self.log}")

    def stop(self) -> None:
        """End haproxy, whatever it has under way."""
        self._supervisor.remove(PROGRAM)

    def _start(self) -> None:
        """Have supervisord start haproxy; return before it is up."""
        state = self._supervisor.state(PROGRAM)
        if state and state.up:
            return
        self._supervisor.ensure()
        make_socket_folder(self._socket, self._folder)
        # -W: a master with workers, which can be reloaded. -db: in the foreground, so that
        # supervisord watches it. -S: the socket that Master asks.
        command = [
            executable(),
            "-W",
            "-db",
            "-S",
            f"{self._socket},mode,600,level,admin",
            "-f",
            str(self._folder / CONFIGURATION),
        ]
        # Leftovers: a worker that stands still outlives its master, and would go on to be given
        # connections.
        mark = self._supervisor.mark_of(PROGRAM)
        self._supervisor.add(
            Program(PROGRAM, command, self.log, self._folder, mark=mark, kill_leftovers=True)
        )

    def _update(self, worker: int, desired: DesiredState) -> str | None:
        """Bring a worker's servers to the desired state; return what it answers where that failed,
        None where it did not.
        """
        answers = [
            f"{command}: {self.master.ask_worker(worker, command)}"
            for command in self._commands(worker, desired)
        ]
        if not answers:
            return None
        # A version that still answers somebody cannot be deleted: the next change does that.
        remaining = [
            command for command in self._commands(worker, desired) if not command.startswith(DELETE)
        ]
        return "; ".join(answers) if remaining else None

    def update_keys(self, keys: Mapping[str, Set[str]]) -> None:
        """Have every worker let in who has these keys, those included that a reload replaced."""
        # One may end at any moment; one that is started reads the keys from their files.
        with contextlib.suppress(NotAnswering):
            for worker in self.master.workers():
                with contextlib.suppress(NotAnswering):
                    for command in self._key_commands(worker, keys):
                        self.master.ask_worker(worker, command)

    def _key_commands(self, worker: int, keys: Mapping[str, Set[str]]) -> list[str]:
        """Return what a worker still has to be told of keys."""
        commands: list[str] = []
        for target, wanted in keys.items():
            actual = self.master.patterns(worker, f"{target}.keys")
            if actual is not None:
                commands += key_commands(target, wanted, actual)
        return commands

    def _commands(self, worker: int, desired: DesiredState) -> list[str]:
        """Return what a worker still has to be told."""
        targets = self.master.targets(worker)
        servers = self.master.servers(worker)
        commands: list[str] = []
        for front in desired.fronts:
            if front.target in targets:
                own_servers = {
                    server.name: server for server in servers if server.target == front.target
                }
                maps = {file: self.master.mapping(worker, file) for file, _ in config.maps(front)}
                commands += runtime_commands(front, own_servers, maps)
        return commands

    def _complaint(self, log_start: int) -> str:
        """Return what haproxy has complained of since its log was this long; where it has not, what
        supervisord says of it.
        """
        # What it writes comes to the log through supervisord, and so a little later.
        deadline = time.monotonic() + LOG_DELAY
        while (
            ALERT not in (log := logged_since(self.log, log_start)) and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        state = self._supervisor.state(PROGRAM)
        said_nothing = f"haproxy says nothing, and is {state.state if state else 'not running'}"
        return alerts(log) or said_nothing


def _description(text: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith("  description "))
