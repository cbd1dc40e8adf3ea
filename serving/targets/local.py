"""Target `local`: each version a program of our own supervisord on a port of its own, haproxy at
the address.

The gateway's traffic goes to the engine itself; BentoML watches it from a further port, where
`/livez`, `/readyz`, `/metrics` and `/v1` are served too. A program is called `<target>@<revision>`.
"""

import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import httpx
import psutil
from pydantic import Field

from weighbridge.core.environments import Environment
from weighbridge.core.errors import Unavailable
from weighbridge.core.machine import available_memory
from weighbridge.core.plugins import load
from weighbridge.core.processes import free_port
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.serving import bento, supervisor
from weighbridge.serving.gateway.access_log import AccessLog
from weighbridge.serving.gateway.gateway import Gateway
from weighbridge.serving.gateway.models import Front, GatewayArgs, Route
from weighbridge.serving.openai_client import is_ready
from weighbridge.serving.supervisor import Supervisor
from weighbridge.serving.targets.base import Release, Revision, Share, TargetArgs

logger = logging.getLogger("weighbridge.local")


class LocalArgs(TargetArgs):
    """Where the local target listens."""

    kind: Literal["local"] = "local"
    host: str = Field("127.0.0.1", description="Address to listen at; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint.")
    stop_seconds: int = Field(
        30, ge=1, description="Seconds between SIGTERM and SIGKILL when a version is stopped."
    )
    gateway: GatewayArgs = Field(
        default_factory=GatewayArgs, description="Queue, API keys and TLS of the address."
    )


class LocalRevision(Revision):
    """A revision as a program of supervisord."""

    program: str
    folder: Path = Field(description="The exported Bento.")
    environment: Path
    port: int = Field(description="Of its engine.")
    management_port: int = Field(description="BentoML's own.")
    health: str = "/health"
    stop_seconds: int = 30


class LocalPulse:
    """Watches one program: supervisord starts a dead one again, so another process id tells."""

    def __init__(self, revision: LocalRevision, host: Supervisor) -> None:
        self._revision = revision
        self._host = host
        self._log = _log(revision, host)
        self._start = self._log.stat().st_size if self._log.exists() else 0
        self._pid = 0

    def check(self) -> None:
        """Raises Unavailable when it has ended since it was started, even if it is up again."""
        state = self._host.state(self._revision.program)
        if state is not None and state.up:
            self._pid = self._pid or state.pid
            if state.pid in (self._pid, 0):
                return
        if state is None and not self._host.running():
            return  # supervisord itself is being started again: nothing is known of the program
        words = f"it ended. Its log ends:\n{_tail(self._log, self._start)}\n"
        raise Unavailable(
            f"serving {self._revision.release.bento}", words, f"whole log: {self._log}"
        )

    def memory(self) -> int:
        """Bytes of all its processes, shared pages counted once."""
        total = 0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
        return total


class Local:
    """Serves on this machine."""

    Args: ClassVar[type[TargetArgs]] = LocalArgs
    Runs: ClassVar[type[Revision]] = LocalRevision

    def address(self, args: LocalArgs) -> str:
        """Base URL that clients use, without `/v1`."""
        return f"{'https' if args.gateway.tls else 'http'}://{_reachable(args.host)}:{args.port}"

    def check(self, target: str, args: LocalArgs, home: Path) -> None:
        """haproxy is installed, and the port is ours to take. Raises Unavailable, BadInput."""
        Gateway(home).check(_front(target, args, ()))

    def credentials(self, args: LocalArgs, home: Path) -> dict[str, str]:
        """Our own key, where the address wants one."""
        return {"Authorization": f"Bearer {Gateway(home).key}"} if args.gateway.api_keys else {}

    def has(self, release: Release, home: Path) -> bool:
        """Whether its Bento is here."""
        try:
            _folder(release, home)
        except Unavailable:
            return False
        return True

    def prepare(
        self, target: str, args: LocalArgs, release: Release, taken: Collection[str], home: Path
    ) -> LocalRevision:
        """Its Bento is here, its environment made. Raises Unavailable."""
        folder = _folder(release, home)
        environment = bento.environment_of(folder, Settings(home=home).cache)
        name, count = release.version, 1
        while name in taken:
            count += 1
            name = f"{release.version}.{count}"
        port = free_port()
        engine = load("engine", bento.candidate_of(folder).engine["kind"])
        return LocalRevision(
            name=name,
            release=release,
            url=f"http://127.0.0.1:{port}",
            program=f"{target}@{name}",
            folder=folder,
            environment=environment.path,
            port=port,
            management_port=free_port(),
            stop_seconds=args.stop_seconds,
            health=str(getattr(engine, "health", "/health")),
        )

    def start(self, revision: LocalRevision, home: Path) -> LocalPulse:
        """Run it beside whatever runs, with no traffic."""
        host = Supervisor(home)
        host.ensure()
        pulse = LocalPulse(revision, host)
        environment = Environment(revision.environment.name, revision.environment)
        host.add(
            supervisor.Program(
                name=revision.program,
                command=bento.serve_command(
                    revision.folder, environment, "127.0.0.1", revision.management_port
                ),
                log=_log(revision, host),
                # One named like a Python package in the working directory would shadow that
                # package.
                directory=host.logs,
                environment=bento.variables("127.0.0.1", revision.port),
                stop_seconds=revision.stop_seconds,
            )
        )
        return pulse

    def answers(self, revision: LocalRevision) -> bool:
        """Whether its engine is well and a real completion comes back."""
        return _get(f"{revision.url}{revision.health}") and is_ready(revision.url)

    def is_well(self, revision: LocalRevision, home: Path) -> bool:
        """Whether it runs and its engine says so."""
        state = Supervisor(home).state(revision.program)
        return state is not None and state.up and _get(f"{revision.url}{revision.health}")

    def stop(self, revision: LocalRevision, home: Path) -> None:
        """End it and wait until no process of it is left."""
        Supervisor(home).remove(revision.program)

    def running(self, target: str, home: Path) -> set[str]:
        """Names of the revisions that supervisord keeps."""
        found = (name.rpartition("@") for name in Supervisor(home).names())
        return {revision for owner, _, revision in found if owner == target}

    def stop_named(self, target: str, name: str, home: Path) -> None:
        """End a revision that only its name is known of."""
        Supervisor(home).remove(f"{target}@{name}")

    def route(self, target: str, args: LocalArgs, shares: Sequence[Share], home: Path) -> None:
        """New requests go to these by these shares, from now on and after a restart."""
        Gateway(home).apply(_front(target, args, shares))

    def routed(self, target: str, args: LocalArgs, shares: Sequence[Share], home: Path) -> bool:
        """Whether the running gateway does exactly that."""
        gateway, front = Gateway(home), _front(target, args, shares)
        if not gateway.running() or front not in gateway.fronts():
            return False
        try:
            facts = gateway.facts(target)
        except Unavailable:
            return False
        found = {(fact.name, fact.port, fact.weight, fact.draining) for fact in facts}
        names = {route.name for route in front.routes}
        wanted = {(route.name, route.port, route.weight, route.draining) for route in front.routes}
        # One that is forgotten once it has ended may still be there.
        return wanted <= found and all(fact.draining for fact in facts if fact.name not in names)

    def in_flight(self, target: str, revision: LocalRevision, home: Path) -> int:
        """Requests that it is answering."""
        try:
            return Gateway(home).sessions(target, revision.name)
        except Unavailable:
            return 1  # nobody knows: it is waited for, up to its bound

    def traffic(self, target: str, home: Path) -> AccessLog:
        """From now on."""
        return AccessLog(Gateway(home).log, target)

    def free_memory(self) -> int | None:
        """Bytes that another version could take without the machine swapping."""
        return available_memory()

    def close(self, target: str, home: Path) -> None:
        """Give the address up; with the last target supervisord ends too, unless the platform is
        up.
        """
        host, gateway = Supervisor(home), Gateway(home)
        if not host.running():
            return
        gateway.remove(target)
        if set(host.names()) <= {"gateway"} and not gateway.fronts():
            host.remove("gateway")
            host.shutdown()


def _front(target: str, args: LocalArgs, shares: Sequence[Share]) -> Front:
    routes = tuple(
        Route(
            name=share.revision.name,
            port=share.revision.port,
            weight=share.weight,
            draining=share.draining,
            health=share.revision.health,
        )
        for share in shares
    )
    return Front(target=target, host=args.host, port=args.port, args=args.gateway, routes=routes)


def _reachable(host: str) -> str:
    """An address that a client on this machine can use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _get(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=5, trust_env=False).is_success)
    except httpx.HTTPError:
        return False


def _log(revision: LocalRevision, host: Supervisor) -> Path:
    return host.logs / f"{revision.program}.log"


def _tail(log: Path, start: int) -> str:
    """What was said last since the log was `start` bytes long."""
    if not log.exists():
        return "(nothing)"
    with log.open("rb") as stream:
        stream.seek(start if start <= log.stat().st_size else 0)
        return bento.last_words(stream.read().decode(errors="replace"))


def _folder(release: Release, home: Path) -> Path:
    """The Bento to run: exported in the artifact store, or else in BentoML's store.

    Raises:
        Unavailable: it is in neither.
    """
    store = Store(home / "store")
    with contextlib.suppress(Unavailable):
        files = store.files(release.digest)
        artifact = store.assemble(files, "bento")
        if any(file.path == "bento.yaml" for file in files) and store.is_whole(artifact):
            return artifact.path
    folder = bento.folder_of(release.bento)
    if (folder / "bento.yaml").exists():
        return folder
    remedy = "run the recipe again to package it"
    raise Unavailable(f"deploying {release.bento}", "the Bento is not on this machine", remedy)
