"""Target `local`: each version a program of our own supervisord on a port of its own, haproxy at
the address.

The gateway's traffic goes to the engine itself; BentoML watches it from a further port, where
`/livez`, `/readyz`, `/metrics` and `/v1` are served too. Where the engine does not keep the
sampling that was weighed, the traffic goes by that port, which adds it to requests. A program is
called `<target>@<revision>`.
"""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import httpx
import psutil
from pydantic import Field

from weighbridge.core import loopback
from weighbridge.core.environments import Environment
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.field_types import Address
from weighbridge.core.machine import available_memory
from weighbridge.core.processes import free_port, memory_of
from weighbridge.core.settings import Settings
from weighbridge.serving import bento_process
from weighbridge.serving.client_requests import OPENAI_OPERATIONS
from weighbridge.serving.engines.base import engine_class
from weighbridge.serving.gateway.access_log import AccessLog
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.metrics import figures
from weighbridge.serving.gateway.models import Front, GatewayArgs, Route
from weighbridge.serving.openai_client import is_ready
from weighbridge.serving.supervised_program import Program, logged_since
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.targets.base import Release, Revision, Share, Target, TargetArgs, free_name
from weighbridge.serving.targets.local_bento import bento_folder, model_names


class LocalArgs(TargetArgs):
    """Where the local target listens."""

    kind: Literal["local"] = "local"
    host: Address = Field(
        "127.0.0.1", description="Address to listen at; 0.0.0.0 for every interface."
    )
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint.")
    stop_seconds: int = Field(
        30, ge=1, description="Seconds between SIGTERM and SIGKILL when a version is stopped."
    )
    gateway: GatewayArgs = Field(
        default_factory=GatewayArgs, description="Queue, API keys, TLS and bounds of the address."
    )


class LocalRevision(Revision):
    """A revision as a program of supervisord."""

    program: str
    folder: Path = Field(description="The exported Bento.")
    environment: Path
    port: int = Field(description="Of its engine.")
    management_port: int = Field(description="BentoML's own.")
    through_bentoml: bool = Field(False, description="Whether clients' requests go by that port.")
    health: str = "/health"
    models: tuple[str, ...] = Field(
        (), description="Names by which requests may call it; none: any, of an older Bento, too."
    )
    operations: tuple[str, ...] = tuple(sorted(OPENAI_OPERATIONS))
    stop_seconds: int = 30

    @property
    def client_port(self) -> int:
        """The port that the gateway sends requests to."""
        return self.management_port if self.through_bentoml else self.port


class LocalLiveness:
    """Watches one program: supervisord starts a dead one again, so another process id tells."""

    def __init__(self, revision: LocalRevision, supervisord: Supervisor) -> None:
        self._revision = revision
        self._supervisor = supervisord
        self._log = _log_of(revision, supervisord)
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._pid = 0

    def check(self) -> None:
        """Raise Unavailable when it has ended since it was started, even if it is up again."""
        state = self._supervisor.state(self._revision.program)
        if state is not None and state.up:
            self._pid = self._pid or state.pid
            if state.pid in (self._pid, 0):
                return
        if state is None and not self._supervisor.running():
            return  # supervisord itself is being started again: nothing is known of the program
        problem = f"it ended. Its log ends:\n{_tail(self._log, self._log_start)}\n"
        raise Unavailable(
            f"serving {self._revision.release.bento}", problem, f"whole log: {self._log}"
        )

    def memory(self) -> int:
        """Return the bytes that all its processes would take alone on the machine."""
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._pid)
            return memory_of([root.pid, *(child.pid for child in root.children(recursive=True))])
        return 0


class Local(Target[LocalArgs, LocalRevision]):
    """Serves on this machine."""

    Args: ClassVar[type[TargetArgs]] = LocalArgs
    revision_model: ClassVar[type[Revision]] = LocalRevision

    def __init__(self, name: str, args: LocalArgs, home: Path) -> None:
        super().__init__(name, args, home)
        self._gateway = Gateway(home)
        self._supervisor = Supervisor(home)

    @property
    def address(self) -> str:
        """The base URL that clients use, without `/v1`."""
        scheme = "https" if self.args.gateway.tls else "http"
        return f"{scheme}://{_reachable(self.args.host)}:{self.args.port}"

    def check(self) -> None:
        """Make sure that haproxy is installed, and that the port is ours to take.

        Raises:
            Unavailable: haproxy is missing.
            BadInput: the port belongs to somebody else.
        """
        self._gateway.check(self._front(()))

    def credentials(self) -> dict[str, str]:
        """Return our own key, where the address wants one."""
        return self._own_key() if self.args.gateway.api_keys else {}

    def certificate(self) -> Path | None:
        """Return the recipe's own file: our requests go to this machine, by no name that it has."""
        return Path(self.args.gateway.tls) if self.args.gateway.tls else None

    def not_more_open(self) -> Self:
        """Return the same with the keys and the certificate that the gateway has, if it has any."""
        fronts = {front.target: front.args for front in self._gateway.fronts()}
        wanted, actual = self.args.gateway, fronts.get(self.name, GatewayArgs())
        closed = wanted.model_copy(
            update={"api_keys": wanted.api_keys or actual.api_keys, "tls": wanted.tls or actual.tls}
        )
        return type(self)(self.name, self.args.model_copy(update={"gateway": closed}), self.home)

    def refresh_access(self) -> None:
        """Have haproxy let in who has one of the keys that the users' files hold now."""
        self._gateway.refresh_keys()

    def problem(self) -> str:
        """Return why the files with keys and certificate can't be used, where they can't."""
        try:
            self._gateway.check_users(self._front(()))
        except BadInput as exc:
            return f"{exc}; what it held before goes on being in force"
        return ""

    def probe_endpoint(self, revision: LocalRevision) -> tuple[str, dict[str, str]]:
        """Return the address, with our own key and pinned to this revision.

        With TLS return the revision's own URL: the certificate is for the name that clients use,
        and not for this machine's loopback address.
        """
        if self.args.gateway.tls:
            return revision.url, {}
        return self.address, {"X-Weighbridge-Version": revision.name, **self._own_key()}

    def traffic_figures(self, revision: LocalRevision) -> dict[str, float]:
        """Return what the gateway counted of this revision since it was started."""
        return figures(self._gateway.metrics_port, self.name, revision.name)

    def has(self, release: Release) -> bool:
        """Whether its Bento is on this machine."""
        try:
            bento_folder(release, self.home)
        except Unavailable:
            return False
        return True

    def prepare(self, release: Release, taken: Collection[str]) -> LocalRevision:
        """Find its Bento and make its environment. Raises Unavailable."""
        folder = bento_folder(release, self.home)
        environment = bento_process.environment_of(folder, Settings(home=self.home).cache)
        name = free_name(release.version, taken)
        # A port of its own: the revision that serves now goes on listening at its own.
        port = free_port()
        candidate = bento_process.candidate_of(folder)
        engine = engine_class(candidate.engine["kind"])
        return LocalRevision(
            name=name,
            release=release,
            url=f"http://127.0.0.1:{port}",
            program=self._program(name),
            folder=folder,
            environment=environment.path,
            port=port,
            management_port=free_port(),
            through_bentoml=not engine.keeps_sampling,
            stop_seconds=self.args.stop_seconds,
            health=engine.health,
            operations=tuple(sorted(engine.operations)),
            models=model_names(candidate, self.name),
        )

    def start(self, revision: LocalRevision) -> LocalLiveness:
        """Run it beside whatever runs, with no traffic. Raises Unavailable, where it is damaged.

        Every byte of it is read before, about a second per GB; the engine then finds it in memory.
        """
        # Also of a version that was served before: its files may have been damaged since then.
        folder = bento_folder(revision.release, self.home, read_again=True)
        supervisord = self._supervisor
        supervisord.ensure()
        # Before it is started: its log must be read from where it ended until now.
        liveness = LocalLiveness(revision, supervisord)
        environment = Environment(revision.environment.name, revision.environment)
        supervisord.add(
            Program(
                name=revision.program,
                command=bento_process.serve_command(
                    folder, environment, "127.0.0.1", revision.management_port
                ),
                log=_log_of(revision, supervisord),
                # A file named like a Python package in the working directory would shadow that
                # package; the folder of logs holds none.
                directory=supervisord.logs,
                environment=bento_process.variables(
                    "127.0.0.1", revision.port, self.name, self.args.gateway.max_body_bytes
                ),
                stop_seconds=revision.stop_seconds,
                mark=supervisord.mark_of(revision.program),
                kill_leftovers=True,
            )
        )
        return liveness

    def answers(self, revision: LocalRevision) -> bool:
        """Whether its engine is healthy and a real completion comes back."""
        return _is_success(f"{revision.url}{revision.health}") and is_ready(revision.url)

    def is_healthy(self, revision: LocalRevision) -> bool:
        """Whether it runs and its engine says that it is healthy."""
        state = self._supervisor.state(revision.program)
        return state is not None and state.up and _is_success(f"{revision.url}{revision.health}")

    def answers_clients(self, revision: LocalRevision) -> bool:
        """Whether its engine is well, the gateway answers, and takes it for up."""
        if not (self.is_healthy(revision) and self._gateway.answers()):
            return False
        with contextlib.suppress(Unavailable):
            servers = self._gateway.servers(self.name)
            return any(server.name == revision.name and server.up for server in servers)
        return False

    def running_since(self, revision: LocalRevision) -> float:
        """Return the Unix time at which its process started; 0: it does not run."""
        state = self._supervisor.state(revision.program)
        return state.since if state is not None and state.up and state.pid else 0.0

    def restart(self, revision: LocalRevision) -> bool:
        """End it, whatever it does; supervisord starts it again."""
        return self._supervisor.kill(revision.program)

    def stop(self, revision: LocalRevision) -> None:
        """End it and wait until no process of it is left."""
        self._supervisor.remove(revision.program)

    def running(self) -> set[str]:
        """Return the names of the revisions that supervisord keeps."""
        programs = (program.rpartition("@") for program in self._supervisor.names())
        return {revision for target, _, revision in programs if target == self.name}

    def stop_named(self, revision_name: str) -> None:
        """End a revision that only its name is known of."""
        self._supervisor.remove(self._program(revision_name))

    def route(self, shares: Sequence[Share[LocalRevision]]) -> None:
        """Send new requests to these by these shares, from now on and after a restart."""
        self._gateway.apply(self._front(shares))

    def is_routed(self, shares: Sequence[Share[LocalRevision]]) -> bool:
        """Whether the running gateway does exactly that."""
        front = self._front(shares)
        if not self._gateway.running() or front not in self._gateway.fronts():
            return False
        if not self._gateway.is_current():
            return False
        try:
            servers = self._gateway.servers(self.name)
        except Unavailable:
            return False
        actual = {(server.name, server.port, server.weight, server.draining) for server in servers}
        desired = {(route.name, route.port, route.weight, route.draining) for route in front.routes}
        names = {route.name for route in front.routes}
        # haproxy forgets a server only once its last request has ended: it may still be there.
        return desired <= actual and all(
            server.draining for server in servers if server.name not in names
        )

    def in_flight(self, revision: LocalRevision) -> int:
        """Return how many requests it is answering."""
        try:
            return self._gateway.sessions(self.name, revision.name)
        except Unavailable:
            return 1  # nobody knows: it is waited for, until its time to drain is over

    def traffic(self) -> AccessLog:
        """Return a reader of the requests that end from now on."""
        return AccessLog(self._gateway.log, self.name)

    def free_memory(self) -> int | None:
        """Return the bytes that another version could take without the machine swapping."""
        return available_memory()

    def _program(self, revision_name: str) -> str:
        return f"{self.name}@{revision_name}"

    def _own_key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._gateway.key}"}

    def _front(self, shares: Sequence[Share[LocalRevision]]) -> Front:
        routes = tuple(
            Route(
                name=share.revision.name,
                port=share.revision.client_port,
                weight=share.weight,
                draining=share.draining,
                health=share.revision.health,
                models=share.revision.models,
                operations=share.revision.operations,
            )
            for share in shares
        )
        return Front(
            target=self.name,
            host=self.args.host,
            port=self.args.port,
            args=self.args.gateway,
            routes=routes,
        )


def _reachable(host: str) -> str:
    """Return an address that a client on this machine can use."""
    # A wildcard is where to listen, not where to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _is_success(url: str) -> bool:
    try:
        return bool(loopback.get(url).is_success)
    except httpx.HTTPError:
        return False


def _log_of(revision: LocalRevision, supervisord: Supervisor) -> Path:
    return supervisord.logs / f"{revision.program}.log"


def _tail(log: Path, start: int) -> str:
    """Return what was logged last, since the log was `start` bytes long."""
    if not log.exists():
        return "(nothing)"
    return bento_process.last_words(logged_since(log, start))
