"""The gateway: one haproxy under our supervisord owns the address of every target.

::

    HOME/run/gateway.json            the wish: every front, and the port of the metrics
    HOME/run/gateway/haproxy.cfg     made from it, checked by haproxy before it is written
    HOME/run/gateway/TARGET.pins     versions that may be pinned (a haproxy map)
    HOME/run/gateway/TARGET.health   path at which each says that it is well
    HOME/run/gateway/TARGET.keys     sha256 of every key that opens the target, our own `key` among
        them
    HOME/run/logs/gateway.log        a line of JSON per request

What a target is (address, keys, TLS, queue) changes by a reload, which loses nothing: the worker
before ends with its last request. What stands behind it (versions, weights) changes at run time.
The files always say the same as the processes, so that a haproxy that is killed comes back as it
was. Every change may be repeated after a crash at any point: it brings files and processes to the
wish, from wherever they are.
"""

import contextlib
import hashlib
import os
import random
import resource
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.files import replace_text
from weighbridge.core.machine import cores
from weighbridge.core.settings import Settings
from weighbridge.serving.gateway import config
from weighbridge.serving.gateway.haproxy import Gone, Master, Server
from weighbridge.serving.gateway.models import Front, ServerFact
from weighbridge.serving.gateway.runtime_commands import orders
from weighbridge.serving.reaper import port_is_free
from weighbridge.serving.supervised_program import Program
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.unix_sockets import make_socket_folder, short_socket

PROGRAM = "gateway"
TIMEOUT = 30.0
"""Seconds until a running haproxy says what it was asked for."""
LEAST, MOST = 20_000, 32_000
"""Ports of our own choice: below those the kernel gives to outgoing connections, so that a restart
finds them free.
"""
CONNECTIONS = 4096
INSTALL = "install haproxy 2.6 or newer: apt-get install haproxy"


class DesiredTargets(BaseModel):
    """What the gateway shall be."""

    model_config = ConfigDict(frozen=True)

    metrics_port: int
    fronts: tuple[Front, ...] = ()


class _CommandRejected(Unavailable):
    """haproxy read the new configuration and went on with the one before."""


class Gateway:
    """The gateway of one Weighbridge home."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._host = Supervisor(home)
        self.folder = home / "run" / "gateway"
        self._state = home / "run" / "gateway.json"
        self._socket = short_socket(self.folder / "master.sock")
        self._peers = short_socket(self.folder / "peers.sock")
        self._master = Master(self._socket)

    @property
    def log(self) -> Path:
        """JSON lines, one per request, among haproxy's own words."""
        return self._host.logs / f"{PROGRAM}.log"

    @property
    def metrics_port(self) -> int:
        """Of Prometheus metrics on the loopback; 0 before the gateway was first asked for."""
        return self._load().metrics_port if self._state.exists() else 0

    @property
    def key(self) -> str:
        """An API key that opens every target: ours, for probes. Only its owner can read the file."""
        path = self.folder / "key"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(path, secrets.token_urlsafe(32))
        return path.read_text()

    def running(self) -> bool:
        """Whether a haproxy that takes connections answers."""
        with contextlib.suppress(Gone):
            return bool(self._master.workers())
        return False

    def ensure(self) -> None:
        """haproxy runs, and is what it was last asked to be.

        Raises:
            Unavailable: it is not installed, or does not start.
        """
        with self._locked():
            wish = self._load()
            self._validate(wish)
            self._bring(wish)

    def check(self, front: Front) -> None:
        """Whether it could listen there, long before it has to.

        Raises:
            BadInput: the port belongs to somebody else.
            Unavailable: haproxy is not installed.
        """
        _haproxy()
        self._check_port(front)

    def apply(self, front: Front) -> None:
        """A target and all that stands behind it become exactly this, losing no request.

        A version that is gone from the routes is cut from new requests at once and forgotten when
        its last has ended.

        Raises: BadInput: the port belongs to somebody else, or haproxy cannot be configured so;
            nothing has changed. Unavailable: haproxy is not installed, or does not start.
        """
        with self._locked():
            before = self._load()
            others = [other for other in before.fronts if other.target != front.target]
            self._change(before, [*others, front], front)

    def remove(self, target: str) -> None:
        """Nobody listens at the target's address any more; requests under way go on to their end."""
        with self._locked():
            before = self._load()
            left = [front for front in before.fronts if front.target != target]
            if len(left) < len(before.fronts):
                self._change(before, left, None)

    def stop(self) -> None:
        """End haproxy, whatever it has under way; `ensure` brings it back as it was."""
        self._host.remove(PROGRAM)

    def fronts(self) -> list[Front]:
        """Every target, as on disk."""
        return list(self._load().fronts) if self._state.exists() else []

    def facts(self, target: str) -> list[ServerFact]:
        """What the running haproxy says of a target's versions, those on their way out included.

        Raises:
            Unavailable: it does not run.
        """
        with self._asking():
            first, *older = self._master.workers()
            earlier = [server for worker in older for server in self._others(worker, target)]
            return [_fact(server, earlier) for server in self._master.servers(first, target)]

    def sessions(self, target: str, server: str) -> int:
        """Requests under way or waiting at a version, those begun before a reload included.

        A worker from before a reload counts as one for as long as it lives: it can be told of no
        change any more, and serves a last request on each connection that was idle then, by the
        versions that it knows.

        Raises:
            Unavailable: haproxy does not run.
        """
        with self._asking():
            first, *older = self._master.workers()
            now = self._master.servers(first, target)
            before = [row for worker in older for row in self._others(worker, target)]
        under_way = sum(row.current + row.queued for row in [*now, *before] if row.name == server)
        return max(under_way, sum(row.name == server and not row.in_maintenance for row in before))

    def _others(self, worker: int, target: str) -> list[Server]:
        """What a worker that may be ending says."""
        with contextlib.suppress(Gone):
            return self._master.servers(worker, target)
        return []

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (Gone, ValueError) as exc:
            raise Unavailable("asking the gateway", str(exc), f"its log: {self.log}") from exc

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._state.with_suffix(".lock")):
            yield

    def _load(self) -> DesiredTargets:
        try:
            return DesiredTargets.model_validate_json(self._state.read_text())
        except FileNotFoundError:
            return DesiredTargets(metrics_port=_metrics_port())
        except ValidationError as exc:
            raise Unavailable(
                f"reading {self._state}", "it is damaged", "remove it, then deploy again"
            ) from exc

    def _change(self, before: DesiredTargets, fronts: Sequence[Front], new: Front | None) -> None:
        wish = before.model_copy(
            update={"fronts": tuple(sorted(fronts, key=lambda front: front.target))}
        )
        text = self._text(wish)
        if new:
            self._check_port(new)
        self._validate(wish, text)
        try:
            self._bring(wish)
        except _CommandRejected as exc:
            self._bring(before)
            about = f" of {new.target}" if new else ""
            raise BadInput(
                f"configuring the gateway{about}", f"haproxy refuses: {exc}", f"its log: {self.log}"
            ) from exc

    def _bring(self, wish: DesiredTargets) -> None:
        """Files, then processes."""
        _write(self._state, wish.model_dump_json(indent=1))
        text = self._text(wish)
        self._write_files(self.folder, wish, text)
        self._settle(wish, _description(text))

    def _text(self, wish: DesiredTargets) -> str:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        connections = (
            CONNECTIONS if limit == resource.RLIM_INFINITY else min(CONNECTIONS, limit // 3)
        )
        place = config.Place(wish.metrics_port, self._peers, connections, min(cores(), 4))
        return config.render(wish.fronts, place)

    def _write_files(self, folder: Path, wish: DesiredTargets, text: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = hashlib.sha256(self.key.encode()).hexdigest()
        for front in wish.fronts:
            for name, entries in config.maps(front).items():
                _write(folder / name, "".join(f"{key} {value}\n" for key, value in entries.items()))
            if front.args.api_keys:
                _write(folder / f"{front.target}.keys", config.keys(front, own))
        _write(folder / "haproxy.cfg", text)
        targets = {front.target for front in wish.fronts}
        for path in (*folder.glob("*.pins"), *folder.glob("*.health"), *folder.glob("*.keys")):
            if path.stem not in targets:
                path.unlink()

    def _validate(self, wish: DesiredTargets, text: str = "") -> None:
        """Have haproxy read what would be written, in a folder of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="check-") as folder:
            self._write_files(Path(folder), wish, text or self._text(wish))
            command = [_haproxy(), "-c", "-q", "-f", "haproxy.cfg"]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
        if done.returncode != 0:
            raise BadInput("configuring the gateway", f"haproxy says: {_alerts(done.stderr)}")

    def _check_port(self, front: Front) -> None:
        """Refuse a port of somebody else's before anything is changed."""
        if port_is_free(front.host, front.port) or front.port in self._own_ports():
            return
        wrong = f"it is taken{_by_whom(front.port)}, or not ours to listen at"
        remedy = "stop that, or choose another `port`"
        raise BadInput(
            f"listening at port {front.port} of {front.host} for {front.target}", wrong, remedy
        )

    def _own_ports(self) -> set[int]:
        found = set()
        with contextlib.suppress(Gone, psutil.Error):
            for worker in self._master.workers():
                connections = psutil.Process(worker).net_connections("tcp")
                found |= {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}
        return found

    def _settle(self, wish: DesiredTargets, description: str) -> None:
        """Until the processes are what the files say."""
        deadline, reloads, trouble = time.monotonic() + TIMEOUT, -1, ""
        while True:
            try:
                first, *_ = self._master.workers()
                if self._master.description(first) == description:
                    trouble = self._tell(first, wish)
                    if not trouble:
                        return
                elif reloads < 0:
                    if self._master.hands_over(first):
                        reloads = self._master.reloads().done
                        self._master.reload()
                elif (seen := self._master.reloads()).done > reloads and seen.failed:
                    raise _CommandRejected(
                        "changing the gateway",
                        f"haproxy refuses: {_alerts(_tail(self.log))}",
                        str(self.log),
                    )
            except (Gone, ValueError):
                self._start()
            if time.monotonic() > deadline:
                words = f"it is not what was asked for after {TIMEOUT:.0f} s: {trouble or _alerts(_tail(self.log))}"
                raise Unavailable("changing the gateway", words, f"its log: {self.log}")
            time.sleep(0.02)

    def _start(self) -> None:
        """Have supervisord start it; returns before it is up."""
        state = self._host.state(PROGRAM)
        if state and state.up:
            return
        self._host.ensure()
        make_socket_folder(self._socket, self.folder)
        config = self.folder / "haproxy.cfg"
        command = [
            _haproxy(),
            "-W",
            "-db",
            "-S",
            f"{self._socket},mode,600,level,admin",
            "-f",
            str(config),
        ]
        self._host.add(Program(PROGRAM, command, self.log, self.folder))

    def _tell(self, worker: int, wish: DesiredTargets) -> str:
        """Have a worker know each target's versions; what it says where it does not."""
        answers = [
            f"{order}: {self._master.tell(worker, order)}" for order in self._orders(worker, wish)
        ]
        # A version that is still answering cannot be forgotten: the next change does that.
        left = (
            [order for order in self._orders(worker, wish) if not order.startswith("del server ")]
            if answers
            else []
        )
        return "; ".join(answers) if left else ""

    def _orders(self, worker: int, wish: DesiredTargets) -> list[str]:
        known = self._master.targets(worker)
        servers = self._master.servers(worker)
        found: list[str] = []
        for front in wish.fronts:
            if front.target in known:
                there = {server.name: server for server in servers if server.target == front.target}
                files = {name: self._master.mapping(worker, name) for name in config.maps(front)}
                found += orders(front, there, files)
        return found


def _fact(server: Server, earlier: Sequence[Server]) -> ServerFact:
    same = [server, *(other for other in earlier if other.name == server.name)]
    host, _, port = server.address.rpartition(":")
    return ServerFact(
        name=server.name,
        host=host.strip("[]"),
        port=int(port),
        weight=server.weight,
        draining=server.in_maintenance,
        up=server.up,
        sessions=sum(one.current + one.queued for one in same),
        requests=sum(one.total for one in same),
    )


def _haproxy() -> str:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = shutil.which("haproxy", path=places)
    if found is None:
        raise Unavailable("starting the gateway", "haproxy is not installed", INSTALL)
    return found


def _metrics_port() -> int:
    wanted = Settings().metrics_port
    while not wanted or not port_is_free("127.0.0.1", wanted):
        wanted = random.randint(LEAST, MOST)
    return wanted


def _description(text: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith("  description "))


def _alerts(words: str) -> str:
    """What haproxy complains of, in one line."""
    lines = words.strip().splitlines()
    found = [line for line in lines if "[ALERT]" in line] or lines
    return " ".join(" ".join(found[-4:]).split())[-600:] or "nothing"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-8000:] if log.exists() else ""


def _by_whom(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr[1:2] == (port,)
                and connection.pid
            ):
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


def _write(path: Path, text: str) -> None:
    """Replace a file that its owner alone may read: keys stand in some."""
    replace_text(path, text, mode=0o600)
