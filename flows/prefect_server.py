"""A Prefect API for one run: the one the user has, or Prefect's own server inside this process.

Prefect's ephemeral server is a second process that imports Prefect again and looks through its
migrations at every start. Here the same server runs in a thread: nothing is imported twice, nothing
outlives the process, and the database stays under the installation's home, where Prefect's own
command shows the runs afterwards::

    PREFECT_HOME=~/.weighbridge/prefect prefect server start
"""

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import re
import socket
import sqlite3
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock

from weighbridge.core import service_addresses
from weighbridge.core.errors import Unavailable
from weighbridge.core.files import replace_text, replace_with_copy
from weighbridge.core.settings import Settings
from weighbridge.flows import prefect_settings
from weighbridge.flows.prefect_settings import users_api

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prefect.client.orchestration import SyncPrefectClient

CREATOR = "WEIGHBRIDGE"
STARTUP_TIMEOUT = 120.0
SETTLE_TIMEOUT = 10.0

logger = logging.getLogger("weighbridge.prefect")


@contextlib.contextmanager
def prefect_api(settings: Settings) -> Iterator[str | None]:
    """Within the block, flows have an API to report to; yields its address, or None where it is
    gone afterwards.

    It is the one the user told Prefect about, else the platform's where that is up, else one for
    this block.

    Enter it before anything imports prefect: Prefect then reads its settings once, and the right
    ones.

    Raises:
        Unavailable: the server does not start, or the user's own does not answer.
    """
    if own := users_api():
        _reach(own)
        with _environment(prefect_settings.for_every_api(), keep_users=True), _our_logs():
            yield own
        return
    if platforms := _platforms_api(settings):
        with _environment(prefect_settings.for_platform(settings, platforms)), _our_logs():
            yield platforms
        return
    home = settings.home / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener,
        contextlib.ExitStack() as stack,
    ):
        with _without_garbage_collection(), _one_at_a_time(home) as schema:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            migrate = schema.must_be_made(settings.cache)
            stack.enter_context(_environment(prefect_settings.for_own_server(home, url, migrate)))
            stack.enter_context(_Server(listener, home))
            stack.enter_context(_our_logs())
            if migrate:
                schema.made(settings.cache)
        mark_interrupted()
        yield None
    # this was a run's process, which ends now: what it imported need not be looked through for that
    gc.freeze()


def _platforms_api(settings: Settings) -> str | None:
    """The API of `weighbridge up`, where it answers now."""
    ports = service_addresses.read(settings.home)
    return (
        ports.prefect_api
        if ports and service_addresses.answers(f"{ports.prefect_api}/health")
        else None
    )


def prepare_database(settings: Settings) -> None:
    """Spare a server that is about to start the migrations, where another one of this machine has
    made them.
    """
    home = settings.home / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(home) as schema:
        schema.must_be_made(settings.cache)


def _reach(url: str) -> None:
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=10)
    except httpx.HTTPError as exc:
        remedy = "start it, or unset PREFECT_API_URL (also in Prefect's profile) to run without it"
        raise Unavailable(f"reaching Prefect's API at {url}", str(exc), remedy) from exc


def mark_interrupted() -> list[str]:
    """Flow runs of our processes that died without a word (kill -9, power cut) become Crashed;
    returns their ids.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        unfinished = {
            "state": {"type": {"any_": ["PENDING", "RUNNING"]}},
            "created_by": {"type_": [CREATOR]},
        }
        found = client.request("POST", "/flow_runs/filter", json={"flow_runs": unfinished}).json()
        dead = [run["id"] for run in found if not _alive(run["created_by"]["display_value"])]
        for run in dead:
            _crash(client, run)
    return dead


def _crash(client: "SyncPrefectClient", flow_run: str) -> None:
    from uuid import UUID

    from prefect.client.schemas.objects import State
    from prefect.states import Crashed

    state: State[Any] = Crashed(
        message="The process was killed. Run the recipe again: finished stages are reused."
    )
    unfinished = {
        "flow_run_id": {"any_": [flow_run]},
        "state": {"type": {"any_": ["PENDING", "RUNNING"]}},
    }
    for task_run in client.request(
        "POST", "/task_runs/filter", json={"task_runs": unfinished}
    ).json():
        client.set_task_run_state(UUID(task_run["id"]), state, force=True)
    client.set_flow_run_state(UUID(flow_run), state, force=True)


def _identity() -> str:
    """Names this process among all that ever used this home; Prefect shows it as the run's creator."""
    started = datetime.fromtimestamp(psutil.Process().create_time()).isoformat(" ", "seconds")
    return f"weighbridge process {os.getpid()} on {socket.gethostname()} since {started}"


def _alive(identity: str) -> bool:
    """Whether the process of `_identity` still runs; one of another machine counts as alive: nobody
    can tell here.
    """
    found = re.fullmatch(r"weighbridge process (\d+) on (.+) since (.+)", identity)
    if found is None or found[2] != socket.gethostname():
        return True
    try:
        started = psutil.Process(int(found[1])).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(started - datetime.fromisoformat(found[3]).timestamp()) < 2


@contextlib.contextmanager
def _environment(variables: Mapping[str, str], keep_users: bool = False) -> Iterator[None]:
    """Set variables, and make a Prefect that was imported before read them again."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(
        {name: value for name, value in variables.items() if not (keep_users and before[name])}
    )
    _read_again()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a PREFECT_HOME that is not there
            refresh_global_settings_context()


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Two thousand modules are imported here, and none of them becomes garbage: neither now nor at
    exit.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _our_logs() -> Iterator[None]:
    """Log lines of our own code appear on the page of the flow or task they belong to."""
    from prefect.logging.handlers import APILogHandler

    handler = APILogHandler(level=logging.INFO)
    logging.getLogger("weighbridge").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("weighbridge").removeHandler(handler)


class NoEmptyTraceback(logging.Filter):
    """Prefect logs a returned Failed state as an exception that there is not: "NoneType: None"."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info == (None, None, None):
            record.exc_info = None
        return True


class _Schema:
    """The tables of Prefect's database: migrated once per Prefect version and machine, then copied."""

    def __init__(self, home: Path) -> None:
        self._database = home / "prefect.db"
        self._mark = home / "prefect.db.version"
        self._version = version("prefect")
        self._was_empty = not self._database.exists()

    def must_be_made(self, cache: Path) -> bool:
        """False when the database has, or now got from the cache, the tables of this Prefect
        version.
        """
        if not self._was_empty:
            self._check()
            return not (self._mark.exists() and self._mark.read_text() == self._version)
        template = self._template(cache)
        if not template.exists():
            return True
        replace_with_copy(self._database, template)
        replace_text(self._mark, self._version)
        return False

    def _check(self) -> None:
        try:
            with contextlib.closing(sqlite3.connect(self._database, timeout=60)) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.DatabaseError as exc:
            remedy = f"move {self._database} away: it holds nothing but the history of runs"
            raise Unavailable("opening Prefect's database", str(exc), remedy) from exc

    def made(self, cache: Path) -> None:
        """The server has migrated; keep an empty database for the next home."""
        replace_text(self._mark, self._version)
        template = self._template(cache)
        if not self._was_empty or template.exists():
            return
        cache.mkdir(parents=True, exist_ok=True)
        scratch = template.with_suffix(f".{os.getpid()}")
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            connection.execute("VACUUM INTO ?", (str(scratch),))
        scratch.replace(template)

    def _template(self, cache: Path) -> Path:
        return cache / f"prefect-{self._version}.db"


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[_Schema]:
    """Two runs that start at once must not both make the tables."""
    with FileLock(home / "starting.lock"):
        yield _Schema(home)


class _Server:
    """Prefect's server on a thread of this process, from `with` to the end of the block."""

    def __init__(self, listener: socket.socket, home: Path) -> None:
        self._listener = listener
        self._home = home
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> "_Server":
        import uvicorn

        config = uvicorn.Config(
            _application(),
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="websockets-sansio",
            ws_ping_interval=None,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="prefect-server", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                log = self._home / "weighbridge.log"
                raise Unavailable(
                    "starting Prefect's server", "it did not come up", f"see the end of {log}"
                )
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from prefect.server.utilities.messaging.memory import Topic

        _send_what_is_left()
        assert self._loop is not None
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_recorded(), self._loop).result(SETTLE_TIMEOUT)
        self._server.should_exit = True
        self._thread.join(SETTLE_TIMEOUT)
        Topic.by_name(
            "events"
        )._subscriptions.clear()  # Prefect forgets to; the next server would wait for them

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from prefect.server.database.dependencies import temporary_database_config

        self._loop = asyncio.get_running_loop()
        with temporary_database_config(None):  # a server before this one may have had another home
            await self._server.serve(sockets=[self._listener])


def _application() -> "FastAPI":
    """Prefect's server as its ephemeral mode makes it, noting in each flow run which process made
    it.
    """
    from prefect.server.api import admin, artifacts, events, flow_runs, flows, logs, server
    from prefect.server.api.dependencies import get_created_by
    from prefect.server.schemas.core import CreatedBy

    # FastAPI builds the routes of a router when a request first comes past it: ask the ones a run
    # needs first.
    needed = [module.router for module in (admin, logs, artifacts, events, flows, flow_runs)]
    server.API_ROUTERS = (
        *needed,
        *(router for router in server.API_ROUTERS if router not in needed),
    )
    app = server.create_app(ephemeral=True, ignore_cache=True)
    creator = CreatedBy(type=CREATOR, display_value=_identity())
    api: Any = app.api_app  # type: ignore[attr-defined]
    api.dependency_overrides[get_created_by] = lambda: creator
    return app


def _send_what_is_left() -> None:
    """Prefect's client sends events and logs from background queues: empty them, end their
    connections.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=SETTLE_TIMEOUT)
    APILogWorker.drain_all(timeout=SETTLE_TIMEOUT)


async def _recorded() -> None:
    """Wait until the server's services have taken every event; they write what they have taken when
    they stop.
    """
    from prefect.server.utilities.messaging.memory import Topic

    while any(
        one._queue.qsize() or one._retry.qsize() for one in Topic.by_name("events")._subscriptions
    ):
        await asyncio.sleep(0.005)
