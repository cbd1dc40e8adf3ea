"""Target `local`: one Bento on this machine, as a program of our own supervisord, at one address.

Clients talk to the engine itself, which listens at the address; BentoML watches it from a port of its own, where
`/livez`, `/readyz`, `/metrics` and `/v1` are served too. Nothing stands between, so nothing is lost in speed.

A swap: the new program starts beside the old one and loads all it can, its engine waiting for the address; the old
one is stopped; the new one's engine starts at once. If that does not answer, the old one is started again. Both are
known to supervisord before the first is stopped, so that one of them serves even if this process is killed.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import httpx
import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.environments import Environment
from core.errors import BadInput, Unavailable
from core.processes import free_port, is_taken
from core.settings import Settings
from core.store import Store
from serving import bento, supervisor
from serving.client import is_ready
from serving.supervisor import Supervisor
from serving.targets.base import Release, Serving, TargetArgs

logger = logging.getLogger("weighbridge.local")


class LocalArgs(TargetArgs):
    """Where the local target listens."""

    kind: Literal["local"] = "local"
    host: str = Field("127.0.0.1", description="Address to listen at; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint.")
    start_timeout: float = Field(600.0, gt=0, description="Seconds until a real completion must have come back.")
    stop_seconds: int = Field(30, ge=1, description="Seconds between SIGTERM and SIGKILL when a version is stopped.")


class Served(BaseModel):
    """One release as a program."""

    model_config = ConfigDict(frozen=True)

    program: str
    release: Release
    folder: Path = Field(description="The exported Bento.")
    environment: Path
    host: str
    port: int
    management_port: int = Field(description="BentoML's own.")
    stop_seconds: int = 30
    start_timeout: float = 600.0
    since: float = 0.0

    @property
    def address(self) -> str:
        return f"http://{_reachable(self.host)}:{self.port}"


class Record(BaseModel):
    """What a target serves, and what it is being swapped for."""

    current: Served | None = None
    next: Served | None = None


class Local:
    """Serves on this machine."""

    Args: ClassVar[type[TargetArgs]] = LocalArgs

    def deploy(self, target: str, args: LocalArgs, release: Release, home: Path) -> Serving:
        """Serve `release`; the one before serves again if this one does not answer.

        Raises:
            BadInput: the port belongs to somebody else.
            Unavailable: it did not answer; the tail of its log is in the message.
        """
        with _locked(target, home):
            host = Supervisor(home)
            record = self._recovered(target, home, host)
            old = record.current
            if old and _same(old, release, args) and _healthy(old, host):
                logger.info("%s already serves %s at %s: nothing to do", target, release.bento, old.address)
                return self._serving(old, True, "already served: nothing to do")
            _check_port(args, old, host)
            new = self._prepare(target, args, release, home)
            host.ensure()
            _save(target, home, Record(current=old, next=new))
            try:
                self._swap(host, old, new)
            except BaseException:
                self._back(host, old, new)
                _save(target, home, Record(current=old))
                raise
            new = new.model_copy(update={"since": time.time()})
            _save(target, home, Record(current=new))
            logger.info("%s serves %s at %s", target, release.bento, new.address)
            return self._serving(new, True, "deployed")

    def serves(self, target: str, args: LocalArgs, release: Release, home: Path) -> Serving | None:
        """What is served, where that is this very release, under these arguments, and it answers; else None."""
        host, record = Supervisor(home), _load(target, home)
        if record.current and record.next is None and _same(record.current, release, args):
            return self._serving(record.current, True, "serves already") if _healthy(record.current, host) else None
        return None

    def status(self, target: str, home: Path) -> Serving:
        """What is served now, as the address itself answers."""
        record = _load(target, home)
        served = record.current or record.next
        if served is None:
            return Serving(release=None, address="", healthy=False, detail="nothing is deployed")
        host = Supervisor(home)
        if record.next and (state := host.state(record.next.program)) and state.up and _healthy(record.next, host):
            served = record.next
        return self._serving(served, _healthy(served, host), _detail(served, record, host))

    def down(self, target: str, home: Path) -> None:
        """Stop serving and leave no process behind."""
        with _locked(target, home):
            host, record = Supervisor(home), _load(target, home)
            for served in (record.next, record.current):
                if served:
                    host.remove(served.program)
            _save(target, home, Record())
            if not host.names():
                host.shutdown()

    def targets(self, home: Path) -> list[str]:
        """Every target that something was deployed to."""
        return sorted(path.parent.name for path in (home / "targets").glob("*/state.json"))

    def _recovered(self, target: str, home: Path, host: Supervisor) -> Record:
        """The record, after whatever a killed deployment left behind is settled."""
        record = _load(target, home)
        if record.current and not host.running():
            host.ensure()  # its programs come up with it
        if record.next is None:
            return record
        if host.running() and _healthy(record.next, host):
            logger.info("an interrupted deployment of %s had succeeded", record.next.release.bento)
            if record.current and record.current.program != record.next.program:
                host.remove(record.current.program)
            settled = Record(current=record.next.model_copy(update={"since": time.time()}))
        else:
            logger.info("an interrupted deployment of %s is taken back", record.next.release.bento)
            self._back(host, record.current, record.next, wait=False)
            settled = Record(current=record.current)
        _save(target, home, settled)
        return settled

    def _prepare(self, target: str, args: LocalArgs, release: Release, home: Path) -> Served:
        folder = _folder(release, home)
        environment = bento.environment_of(folder, Settings(home=home).cache)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{target}-{release.bento}-{args.port}")
        return Served(
            program=name, release=release, folder=folder, environment=environment.path, host=args.host, port=args.port,
            management_port=free_port(), stop_seconds=args.stop_seconds, start_timeout=args.start_timeout,
        )  # fmt: skip

    def _swap(self, host: Supervisor, old: Served | None, new: Served) -> None:
        if old and old.program == new.program:
            host.remove(old.program)
            old = None
        log = _log(new, host)
        start = log.stat().st_size if log.exists() else 0
        _add(host, new)
        if old and _listening(old, host):
            self._until(host, new, start, lambda: _poised(new, host) or _listening(new, host))
        if old:
            host.remove(old.program)
        self._await(host, new, start)

    def _await(self, host: Supervisor, served: Served, log_start: int) -> None:
        """Until a real completion comes back from the program's own engine."""
        self._until(
            host, served, log_start,
            lambda: _listening(served, host) and is_ready(served.address, timeout=served.start_timeout),
        )  # fmt: skip

    def _until(self, host: Supervisor, served: Served, log_start: int, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + served.start_timeout
        first = 0
        while not ready():
            state = host.state(served.program)
            first = first or (state.pid if state else 0)
            wrong = ""
            # One that took long to fail has been started again already: another process id tells.
            if state is None or not state.up or state.pid != first:
                wrong = "it ended before it answered"
            elif time.monotonic() > deadline:
                wrong = f"no completion came back within {served.start_timeout:.0f} s"
            if wrong:
                log = _log(served, host)
                words = f"{wrong}. Its log ends:\n{_tail(log, log_start)}\n"
                raise Unavailable(f"serving {served.release.bento}", words, f"whole log: {log}")
            time.sleep(0.1)

    def _back(self, host: Supervisor, old: Served | None, new: Served, wait: bool = True) -> None:
        """The old one serves again."""
        if old is None or old.program != new.program:
            host.remove(new.program)
        if old is None:
            return
        host.ensure()
        _add(host, old)
        if wait:
            self._await(host, old, 0)
            logger.warning("%s serves again at %s", old.release.bento, old.address)

    def _serving(self, served: Served, healthy: bool, detail: str) -> Serving:
        return Serving(
            release=served.release, address=served.address, healthy=healthy, detail=detail, since=served.since
        )


def _reachable(host: str) -> str:
    """An address that a client on this machine can use."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _add(host: Supervisor, served: Served) -> None:
    environment = Environment(served.environment.name, served.environment)
    host.add(
        supervisor.Program(
            name=served.program,
            command=bento.serve_command(served.folder, environment, "127.0.0.1", served.management_port),
            log=_log(served, host),
            # A folder of its own: one named like a Python package in the working directory would shadow that package.
            directory=host.logs,
            environment=bento.variables(served.host, served.port),
            stop_seconds=served.stop_seconds,
        )
    )


def _log(served: Served, host: Supervisor) -> Path:
    return host.logs / f"{served.program}.log"


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


def _same(served: Served, release: Release, args: LocalArgs) -> bool:
    return served.release.bento == release.bento and (served.host, served.port) == (args.host, args.port)


def _listener(served: Served, host: Supervisor) -> psutil.Process | None:
    """The program's process that listens at its address."""
    state = host.state(served.program)
    if state is None or not state.pid:
        return None
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(state.pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                ports = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
                if served.port in ports:
                    return process
    return None


def _poised(served: Served, host: Supervisor) -> bool:
    """Whether everything but the engine is up, and the engine waits for the address."""
    state = host.state(served.program)
    if state is None or not state.pid:
        return False
    with contextlib.suppress(psutil.Error):
        return any("--await-port" in child.cmdline() for child in psutil.Process(state.pid).children(recursive=True))
    return False


def _listening(served: Served, host: Supervisor) -> bool:
    return _listener(served, host) is not None


def _healthy(served: Served, host: Supervisor) -> bool:
    """Whether the program's own engine answers at the address."""
    if not _listening(served, host):
        return False
    try:
        return bool(httpx.get(f"{served.address}/v1/models", timeout=5, trust_env=False).is_success)
    except httpx.HTTPError:
        return False


def _detail(served: Served, record: Record, host: Supervisor) -> str:
    if not host.running():
        return "supervisord does not run: deploy again, or run `weighbridge up`"
    state = host.state(served.program)
    words = f"{served.program}: {state.state.lower() if state else 'unknown to supervisord'}"
    if record.next and record.next.program != served.program:
        words += f"; a deployment of {record.next.release.bento} was interrupted or goes on"
    return f"{words}; BentoML at http://127.0.0.1:{served.management_port}"


def _check_port(args: LocalArgs, old: Served | None, host: Supervisor) -> None:
    """Refuse a port of somebody else's before anything is stopped."""
    if not is_taken(args.port, args.host):
        return
    if old and old.port == args.port and _listening(old, host):
        return
    raise BadInput(
        f"deploying to port {args.port} of {args.host}",
        f"it is taken{_by_whom(args.port)}",
        "stop that, or choose another `port`",
    )


def _by_whom(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""


@contextlib.contextmanager
def _locked(target: str, home: Path) -> Iterator[None]:
    folder = home / "targets" / target
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process deploys to %s: waiting for it", target)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _load(target: str, home: Path) -> Record:
    path = home / "targets" / target / "state.json"
    try:
        return Record.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return Record()
    except (ValueError, ValidationError) as exc:
        raise Unavailable(f"reading {path}", "it is damaged", "remove it, then deploy again") from exc


def _save(target: str, home: Path, record: Record) -> None:
    path = home / "targets" / target / "state.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(record.model_dump_json(indent=1))
    scratch.replace(path)
