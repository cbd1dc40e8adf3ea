"""The gateway: one haproxy under our supervisord owns the address of every target.

::

    HOME/run/gateway.json            the desired state: every front, and the port of the metrics
    HOME/run/gateway/haproxy.cfg     made from it, checked by haproxy before it is written
    HOME/run/gateway/TARGET.pins     versions that may be pinned (a haproxy map)
    HOME/run/gateway/TARGET.health   path at which each says that it is well
    HOME/run/gateway/TARGET.operations  what clients may ask, each method with its path after it
    HOME/run/gateway/TARGET.keys     sha256 of every key that opens the target, our own included
    HOME/run/gateway/TARGET.pem      its certificate and key, copied from the user's file
    HOME/run/gateway/key             our own key, for probes
    HOME/run/logs/gateway.log        a line of JSON per request

What a target is (address, TLS, queue) changes by a reload, which loses nothing: the worker that was
replaced ends with its last request. Who is let in, and what stands behind it (versions, weights),
changes at run time. The files always say the same as the processes, so that a haproxy that was
killed comes back as it was. Every change may be repeated after a crash at any point: it brings
files and processes to the desired state, from whatever state they are in.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from filelock import FileLock

from weighbridge.core import loopback
from weighbridge.core.disk import is_full, recording
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.serving.gateway.files import DesiredState, GatewayFiles
from weighbridge.serving.gateway.haproxy import NotAnswering, Server, executable
from weighbridge.serving.gateway.haproxy_process import ConfigurationRejected, HaproxyProcess
from weighbridge.serving.gateway.models import Front, ServerState
from weighbridge.serving.gateway.ports import check_port
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.unix_sockets import short_socket


class Gateway:
    """The gateway of one Weighbridge home."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "run" / "gateway"
        self._lock = home / "run" / "gateway.lock"
        peers = short_socket(self.folder / "peers.sock")
        self._files = GatewayFiles(home / "run" / "gateway.json", self.folder, peers)
        socket = short_socket(self.folder / "master.sock")
        self._process = HaproxyProcess(Supervisor(home), self.folder, socket)
        self._master = self._process.master

    @property
    def log(self) -> Path:
        """JSON lines, one per request, among haproxy's own messages."""
        return self._process.log

    @property
    def metrics_port(self) -> int | None:
        """Port of Prometheus metrics on the loopback; None before the gateway was first asked
        for.
        """
        desired = self._files.load()
        return desired.metrics_port if desired else None

    @property
    def key(self) -> str:
        """An API key that opens every target: ours, for probes. Only its owner can read it."""
        return self._files.key

    def running(self) -> bool:
        """Whether a haproxy that takes connections answers."""
        return bool(self._workers())

    def answers(self) -> bool:
        """Whether a client gets an answer: of a worker, which the master alone says nothing of."""
        try:
            # Any answer will do, and this is a short one.
            loopback.get(f"http://127.0.0.1:{self.metrics_port}/")
        except httpx.HTTPError:
            return False
        return self.running()

    def ensure(self) -> None:
        """Have haproxy run, and be what it was last asked to be.

        Raises:
            Unavailable: it is not installed, or does not start.
        """
        with self._locked():
            desired = self._files.load_or_begin()
            self._files.check(desired)
            self._establish(desired)

    def check(self, front: Front) -> None:
        """Refuse an address where the gateway could not listen so, long before it has to.

        Raises:
            BadInput: the port belongs to somebody else, or haproxy could not be configured so.
            Unavailable: haproxy is not installed.
        """
        # Called for what it raises.
        executable()
        check_port(front, self._workers())
        self.check_users(front)
        with self._locked():
            actual = self._files.load_or_begin()
            others = [other for other in actual.fronts if other.target != front.target]
            self._files.check(actual.model_copy(update={"fronts": (*others, front)}))

    def check_users(self, front: Front) -> None:
        """Refuse a target whose files with keys and certificate can't be used. Raises BadInput."""
        self._files.check_users(front)

    def apply(self, front: Front) -> None:
        """Make a target, and all that stands behind it, exactly this, losing no request.

        A version that is gone from the routes is cut from new requests at once, and forgotten when
        its last one has ended.

        Raises:
            BadInput: the port belongs to somebody else, or haproxy cannot be configured so; nothing
                has changed.
            Unavailable: haproxy is not installed, or does not start.
        """
        with self._locked():
            actual = self._files.load_or_begin()
            others = [other for other in actual.fronts if other.target != front.target]
            self._change(actual, [*others, front], front)

    def remove(self, target: str) -> None:
        """Have nobody listen at the target's address; requests under way go on to their end."""
        with self._locked():
            actual = self._files.load_or_begin()
            remaining = [front for front in actual.fronts if front.target != target]
            if len(remaining) < len(actual.fronts):
                self._change(actual, remaining, None)

    def stop(self) -> None:
        """End haproxy, whatever it has under way; `ensure` brings it back as it was."""
        self._process.stop()

    def is_current(self) -> bool:
        """Whether haproxy goes by the keys and certificates that the users' files hold now.

        Raises:
            BadInput: a file can't be used, and nothing is in force that could go on being so.
        """
        desired = self._files.load()
        if desired is None:
            return False
        keys = self._keys(desired)
        return keys == self._files.written_keys(desired) and self._process.is_current(
            self._files.render(desired), keys
        )

    def refresh_keys(self) -> None:
        """Let in who has one of the keys that the users' files hold now, at every target.

        Addresses and versions stay as they are.

        Raises:
            BadInput: a file can't be used, and nothing is in force that could go on being so.
        """
        with self._locked():
            desired = self._files.load()
            if desired is None:
                return
            keys = self._keys(desired)
            if keys != self._files.written_keys(desired):
                with recording(self.folder):
                    self._files.write_keys(desired)
            self._process.update_keys(keys)

    def fronts(self) -> list[Front]:
        """Return every target, as on disk."""
        desired = self._files.load()
        return list(desired.fronts) if desired else []

    def servers(self, target: str) -> list[ServerState]:
        """Return the actual state of a target's versions, those on their way out included.

        Raises:
            Unavailable: haproxy does not run.
        """
        with self._asking():
            worker, *replaced = self._master.workers()
            earlier = [row for old in replaced for row in self._servers_if_alive(old, target)]
            return [_state(server, earlier) for server in self._master.servers(worker, target)]

    def sessions(self, target: str, server: str) -> int:
        """Return how many requests are under way or waiting at a version, those begun before a
        reload included.

        A worker that was replaced by a reload counts as one for as long as it lives: it can be told
        of no change any more, and serves a last request on each connection that was idle then, by
        the versions that it knows.

        Raises:
            Unavailable: haproxy does not run.
        """
        with self._asking():
            worker, *replaced = self._master.workers()
            current = self._master.servers(worker, target)
            earlier = [row for old in replaced for row in self._servers_if_alive(old, target)]
        under_way = sum(
            row.current + row.queued for row in [*current, *earlier] if row.name == server
        )
        may_answer = sum(row.name == server and not row.in_maintenance for row in earlier)
        return max(under_way, may_answer)

    def _workers(self) -> list[int]:
        with contextlib.suppress(NotAnswering):
            return self._master.workers()
        return []

    def _servers_if_alive(self, worker: int, target: str) -> list[Server]:
        """Return what a worker says that may be ending."""
        with contextlib.suppress(NotAnswering):
            return self._master.servers(worker, target)
        return []

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (NotAnswering, ValueError) as exc:
            raise Unavailable("asking the gateway", str(exc), f"its log: {self.log}") from exc

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock):
            yield

    def _change(self, actual: DesiredState, fronts: Sequence[Front], new: Front | None) -> None:
        # Sorted: whether haproxy has to reload must not depend on the order of the calls.
        ordered = tuple(sorted(fronts, key=lambda front: front.target))
        desired = actual.model_copy(update={"fronts": ordered})
        if new and not any(_has_same_files(new, front) for front in actual.fronts):
            self.check_users(new)
        # What cannot be written down is refused before anybody else's ports are looked at.
        self._files.render(desired)
        if new:
            check_port(new, self._workers())
        try:
            self._files.check(desired)
            self._establish(desired)
        except OSError as exc:
            if not is_full(exc):
                raise
            self._establish_unwritten(desired, exc)
        except ConfigurationRejected as exc:
            # The files hold the refused one by now: a haproxy that is started again would read it.
            self._establish(actual)
            about = f" of {new.target}" if new else ""
            raise BadInput(f"configuring the gateway{about}", exc.wrong, exc.remedy) from exc

    def _establish(self, desired: DesiredState) -> None:
        # Files first: a haproxy that is killed in between comes back as desired.
        text = self._files.write(desired)
        self._process.reconcile(desired, text, self._files.written_keys(desired))

    def _establish_unwritten(self, desired: DesiredState, problem: OSError) -> None:
        """Change what stands behind the addresses, which takes no file: the disk is full.

        The files say something else until `apply` is called again, which whoever watches the target
        does.
        """
        text = self._files.render(desired)
        with recording(self.folder):
            if not self._process.runs(text):
                raise problem
        self._process.reconcile(desired, text, self._keys(desired))

    def _keys(self, desired: DesiredState) -> dict[str, set[str]]:
        """Return who is to be let in now, by target, whatever was written down. Raises BadInput."""
        return {front.target: set(self._files.keys(front).split()) for front in desired.fronts}


def _has_same_files(front: Front, other: Front) -> bool:
    return (front.target, front.args.api_keys, front.args.tls) == (
        other.target,
        other.args.api_keys,
        other.args.tls,
    )


def _state(server: Server, earlier: Sequence[Server]) -> ServerState:
    rows = [server, *(row for row in earlier if row.name == server.name)]
    host, _, port = server.address.rpartition(":")
    return ServerState(
        name=server.name,
        host=host.strip("[]"),
        port=int(port),
        weight=server.weight,
        draining=server.in_maintenance,
        up=server.up,
        sessions=sum(row.current + row.queued for row in rows),
        requests=sum(row.total for row in rows),
    )
