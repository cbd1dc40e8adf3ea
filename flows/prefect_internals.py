"""Every use of names inside Prefect that its documentation does not offer, and no other module's.

With them Prefect's server runs on a thread of this process: nothing is imported twice, and nothing
outlives the process. `prefect_server` starts `prefect server start` instead where one is gone.
"""

import asyncio
import contextlib
import contextvars
import queue
import socket
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from weighbridge.core.errors import Unavailable
from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.flows.interrupted_runs import CREATOR, identity
from weighbridge.flows.prefect_logs import logs_on_pages

if TYPE_CHECKING:
    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

STARTUP_TIMEOUT = 120.0
IDLE_POLL = 2.0
"""Seconds between two looks of an idle server's background worker."""
SETTLE_TIMEOUT = 10.0
"""Seconds that the server may take for what it was sent, and then to stop."""


class ServerThread:
    """Prefect's server on a thread of this process, from `with` to the end of the block.

    Entering it raises one of NAME_IS_GONE where Prefect has changed, so that leaving it cannot.
    """

    def __init__(self, listener: socket.socket, home: Path) -> None:
        self._listener = listener
        self._home = home
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "ServerThread":
        import uvicorn

        config = uvicorn.Config(
            _application(),
            # None: uvicorn would set up logging anew, for the whole of this process.
            log_config=None,
            access_log=False,
            # With `auto`, uvicorn takes an error while Prefect's services start for an application
            # without a lifespan, and serves it.
            lifespan="on",
            # The default rests on `websockets.legacy`, whose import warns that it will go.
            ws="websockets-sansio",
            ws_ping_interval=None,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        # Prefect keeps its settings in a context variable, which a new thread does not have.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="prefect-server", daemon=True
        )
        self._thread.start()
        try:
            self._wait_until_started()
            # What leaving the block needs is tried now, while there is another way to start.
            _drains()
            _events_wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from prefect.server.utilities.messaging.memory import Topic

        send_what_is_left()
        assert self._loop is not None
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_recorded(), self._loop).result(SETTLE_TIMEOUT)
        self._stop()
        # Prefect forgets to; the next server of this process would wait for them.
        Topic.by_name("events")._subscriptions.clear()

    def _wait_until_started(self) -> None:
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while not self._server.started:
            if isinstance(self._error, NAME_IS_GONE):
                raise self._error
            if not self._thread.is_alive() or time.monotonic() > deadline:
                log = self._home / "weighbridge.log"
                raise Unavailable(
                    "starting Prefect's server", "it did not come up", f"see the end of {log}"
                )
            time.sleep(0.01)

    def _stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(SETTLE_TIMEOUT)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except NAME_IS_GONE as exc:
            self._error = exc

    async def _serve(self) -> None:
        from prefect.server.database.dependencies import temporary_database_config

        self._loop = asyncio.get_running_loop()
        with temporary_database_config(None):  # a server before this one may have had another home
            await self._server.serve(sockets=[self._listener])


def _application() -> "FastAPI":
    """Return Prefect's server as its ephemeral mode makes it, which notes in each flow run that
    this process made it.
    """
    from prefect.server.api import admin, artifacts, events, flow_runs, flows, logs, server
    from prefect.server.api.dependencies import get_created_by, get_updated_by
    from prefect.server.schemas.core import CreatedBy, UpdatedBy

    # FastAPI builds the routes of a router when a request first comes past it: ask the ones a run
    # needs first.
    needed = [module.router for module in (admin, logs, artifacts, events, flows, flow_runs)]
    server.API_ROUTERS = (
        *needed,
        *(router for router in server.API_ROUTERS if router not in needed),
    )
    app = server.create_app(ephemeral=True, ignore_cache=True)
    creator = CreatedBy(type=CREATOR, display_value=identity())
    # Where something has a creator, Prefect takes it for granted that it has this as well.
    updater = UpdatedBy(type=CREATOR, display_value=identity())
    api: Any = app.api_app  # type: ignore[attr-defined]
    api.dependency_overrides[get_created_by] = lambda: creator
    api.dependency_overrides[get_updated_by] = lambda: updater
    return app


def send_what_is_left() -> None:
    """Empty the background queues from which Prefect's client sends events and logs, and end their
    connections.
    """
    for drain in _drains():
        drain(timeout=SETTLE_TIMEOUT)


def _drains() -> list[Any]:
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    return [EventsWorker.drain_all, APILogWorker.drain_all]


async def _recorded() -> None:
    """Wait until the server's services have taken every event; they write what they have taken when
    they stop.
    """
    while _events_wait():
        await asyncio.sleep(0.005)


def _events_wait() -> bool:
    """Whether the server holds events that none of its services has taken."""
    from prefect.server.utilities.messaging.memory import Topic

    return any(
        subscription._queue.qsize() or subscription._retry.qsize()
        for subscription in Topic.by_name("events")._subscriptions
    )


def carry_out(flow: Any, flow_run: UUID) -> None:
    """Carry out a flow run that Prefect has planned, on this thread: as `python -m prefect.engine`
    does in a process.

    However it ends, Prefect knows; nothing is raised for that.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import Abort, Pause
    from prefect.flow_engine import run_flow

    with get_client(sync_client=True) as client:
        planned = client.read_flow_run(flow_run)
    # Aborted: it was cancelled, say, before it began.
    with logs_on_pages(), contextlib.suppress(Abort, Pause):
        run_flow(flow, flow_run=planned, return_type="state")


def read_settings_again() -> None:
    """Make a Prefect that was imported before read its environment variables again."""
    if "prefect.context" not in sys.modules:
        return
    try:
        from prefect.context import refresh_global_settings_context

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a PREFECT_HOME that is not there
            refresh_global_settings_context()
    except NAME_IS_GONE as exc:
        # A command of ours imports Prefect once its variables are set; only a program that imported
        # Prefect before it called us goes on with the settings it had.
        warn_name_is_gone("prefect", exc)


def writers_wait() -> None:
    """Have a server on SQLite wait where another write is under way, instead of answering 503.

    Prefect begins to write where it has read, with a look at the database that is out of date once
    somebody else has written: SQLite refuses that at once, however long it may wait. A transaction
    that takes its turn before it reads waits for it. Whatever else reads meanwhile goes on.
    """
    from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration

    # AttributeError where it is gone: assigned alone, the server would go on as before.
    del AioSqliteConfiguration.begin_transaction

    @contextlib.asynccontextmanager
    async def begin_transaction(
        self: Any, session: "AsyncSession", with_for_update: bool = False
    ) -> AsyncIterator["AsyncSessionTransaction"]:
        token = SQLITE_BEGIN_MODE.set("IMMEDIATE")
        try:
            async with session.begin() as transaction:
                await session.connection()
                # Of a second session within this block: it must not wait for the first one.
                SQLITE_BEGIN_MODE.set("DEFERRED")
                yield transaction
        finally:
            SQLITE_BEGIN_MODE.reset(token)

    unchecked: Any = AioSqliteConfiguration
    unchecked.begin_transaction = begin_transaction


def poll_seldom() -> None:
    """Have an idle server look for work of its own every few seconds, not ten times a second.

    New work wakes it at once all the same; what is planned for a time begins that much later.
    """
    from burner_redis.pubsub import PubSub  # type: ignore[import-untyped]
    from docket import Worker
    from prefect.server.api import background_workers

    poll = timedelta(seconds=IDLE_POLL)
    users: Any = background_workers
    # AttributeError where it is gone: assigned alone, the server would go on as before.
    del users.Worker
    users.Worker = partial(Worker, minimum_check_interval=poll, scheduling_resolution=poll)
    message_at_once = PubSub._queue_get

    async def next_message(self: Any, timeout: float | None) -> Any:
        if timeout == 0:
            return await message_at_once(self, timeout)
        while True:
            with contextlib.suppress(queue.Empty):
                return await asyncio.to_thread(self._queue.get, True, IDLE_POLL)
            if timeout is not None:
                return None

    PubSub._queue_get = next_message
