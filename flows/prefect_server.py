"""A Prefect API for one run: the one the user has, the platform's, or a server of its own.

Prefect's own ephemeral server is a second process that imports Prefect again and looks through its
migrations at every start. Here the same server runs on a thread of this process, with a database
that was copied (`prefect_internals`). Where that is turned off, or Prefect has changed inside,
`prefect server start` runs beside this process. The database stays under the installation's home,
where Prefect's own command shows the runs afterwards::

    PREFECT_HOME=~/.weighbridge/prefect prefect server start
"""

import contextlib
import gc
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping

from weighbridge.core import service_addresses
from weighbridge.core.errors import Unavailable
from weighbridge.core.fast_start import NAME_IS_GONE, warn_name_is_gone
from weighbridge.core.private_folders import make_private
from weighbridge.core.processes import Process
from weighbridge.core.proxies import direct_hosts
from weighbridge.core.settings import Settings
from weighbridge.flows import interrupted_runs, prefect_internals, prefect_settings
from weighbridge.flows.prefect_database import starting
from weighbridge.flows.prefect_logs import logs_on_pages
from weighbridge.flows.prefect_settings import users_api

_RECORDED_AFTER = 1.5
"""Seconds: a server writes the task runs it has heard of once a second (`prefect_settings`)."""


@contextlib.contextmanager
def prefect_api(settings: Settings) -> Iterator[str | None]:
    """Give flows within the block an API to report to.

    It is the one the user told Prefect about, else the platform's where that is up, else one for
    this block. Enter it before anything imports prefect: Prefect then reads its settings once, and
    the right ones.

    Returns:
        The API's address, or None where it is gone after the block.

    Raises:
        Unavailable: the server does not start, or the user's own does not answer.
    """
    with _environment(direct_hosts()), _api_of_somebody(settings) as url:
        yield url


@contextlib.contextmanager
def lasting_prefect_api(settings: Settings, doing: str) -> Iterator[str]:
    """Give the block the user's API, or the platform's: one that is there afterwards too.

    Enter it before anything imports prefect, as `prefect_api`.

    Args:
        settings: Of the installation.
        doing: What it is needed for, as an error says it.

    Raises:
        Unavailable: there is none, or it does not answer.
    """
    with api_that_stays(settings) as url:
        if url is None:
            wrong = "no Prefect is up that stays"
            raise Unavailable(doing, wrong, "run: weighbridge up, or set PREFECT_API_URL")
        yield url


@contextlib.contextmanager
def _api_of_somebody(settings: Settings) -> Iterator[str | None]:
    """Give the user's API, the platform's, or one of this process's own."""
    with _api_that_stays(settings) as url:
        if url is not None:
            yield url
            return
    with _own_server(settings):
        interrupted_runs.mark_interrupted()
        yield None
    # This was a run's process, which ends now: what it imported need not be looked through for
    # that.
    gc.freeze()


@contextlib.contextmanager
def api_that_stays(settings: Settings) -> Iterator[str | None]:
    """Give the user's API, or the platform's; None where there is neither."""
    with _environment(direct_hosts()), _api_that_stays(settings) as url:
        yield url


@contextlib.contextmanager
def _api_that_stays(settings: Settings) -> Iterator[str | None]:
    if users_url := users_api():
        _reach(users_url)
        # It is the user's Prefect: what the user has set stays.
        with _environment(prefect_settings.for_every_api(), keep_users=True), logs_on_pages():
            yield users_url
        return
    if platform_url := _platforms_api(settings):
        variables = {
            **prefect_settings.for_platform(settings, platform_url),
            **prefect_settings.client_secrets(settings.home),
        }
        with _environment(variables), logs_on_pages():
            yield platform_url
        return
    yield None


@contextlib.contextmanager
def _own_server(settings: Settings) -> Iterator[None]:
    """Run a server for this block: on a thread where that goes, else as a process."""
    make_private(settings.home)
    make_private(settings.home / "prefect")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(
            contextlib.closing(socket.create_server((service_addresses.HOST, 0)))
        )
        # One port for both: a Prefect that the first one imported has read the address.
        port = listener.getsockname()[1]
        server = server_inside(settings, listener)
        if not (settings.fast_start and _entered(stack, server)):
            listener.close()
            stack.enter_context(server_beside(settings, port))
        yield


def _entered(stack: contextlib.ExitStack, server: contextlib.AbstractContextManager[None]) -> bool:
    """Start a server for the rest of the stack; False, and a warning, where Prefect has changed."""
    try:
        stack.enter_context(server)
    except NAME_IS_GONE as exc:
        warn_name_is_gone("prefect", exc)
        return False
    return True


@contextlib.contextmanager
def server_inside(settings: Settings, listener: socket.socket) -> Iterator[None]:
    """Run Prefect's server on a thread of this process.

    Raises:
        AttributeError, ImportError, TypeError: Prefect lacks a name that this rests on.
        Unavailable: it does not come up.
    """
    home = settings.home / "prefect"
    with contextlib.ExitStack() as stack:
        with _without_garbage_collection(), starting(home) as database:
            migrate = database.needs_migration(settings.cache)
            url = _url(listener.getsockname()[1])
            stack.enter_context(_environment(prefect_settings.for_own_server(home, url, migrate)))
            prefect_internals.writers_wait()
            stack.enter_context(prefect_internals.ServerThread(listener, home))
            stack.enter_context(logs_on_pages())
            if migrate:
                database.migrated(settings.cache)
        yield


@contextlib.contextmanager
def server_beside(settings: Settings, port: int) -> Iterator[None]:
    """Run `prefect server start` as a process that ends with this block, and with this process.

    Raises:
        Unavailable: it does not come up.
    """
    home = settings.home / "prefect"
    url = _url(port)
    command = [
        *(sys.executable, "-m", "prefect", "server", "start"),
        *("--host", service_addresses.HOST, "--port", str(port)),
    ]
    with contextlib.ExitStack() as stack:
        with starting(home) as database:
            database.check()
            variables = prefect_settings.for_own_server(home, url, migrate=True)
            stack.enter_context(_environment(variables))
            server = Process("Prefect's server", command, log=home / "server.log", cwd=home)
            stack.enter_context(server)
            server.wait_until(
                lambda: service_addresses.answers(f"{url}/health"),
                prefect_internals.STARTUP_TIMEOUT,
            )
        from prefect import tags

        stack.enter_context(logs_on_pages())
        # A server of its own process does not know who asks: the runs carry it as a tag.
        stack.enter_context(tags(interrupted_runs.identity()))
        try:
            yield
        finally:
            _wait_until_recorded()


def _wait_until_recorded() -> None:
    """Wait until the server beside us has written the task runs of this process."""
    try:
        prefect_internals.send_what_is_left()
    except NAME_IS_GONE as exc:
        warn_name_is_gone("prefect", exc)
    # A task run that the server has not written down at all is not among the unfinished ones.
    time.sleep(_RECORDED_AFTER)
    deadline = time.monotonic() + prefect_internals.SETTLE_TIMEOUT
    while (
        interrupted_runs.unfinished_task_runs(interrupted_runs.identity())
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)


def _url(port: int) -> str:
    return f"http://{service_addresses.HOST}:{port}/api"


def _platforms_api(settings: Settings) -> str | None:
    """Return the API of `weighbridge up`, where it answers now."""
    ports = service_addresses.read(settings.home)
    if ports is None or not service_addresses.answers(f"{ports.prefect_api}/health"):
        return None
    return ports.prefect_api


def _reach(url: str) -> None:
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=10)
    except httpx.HTTPError as exc:
        remedy = "start it, or unset PREFECT_API_URL (also in Prefect's profile) to run without it"
        raise Unavailable(f"reaching Prefect's API at {url}", str(exc), remedy) from exc


@contextlib.contextmanager
def _environment(variables: Mapping[str, str], keep_users: bool = False) -> Iterator[None]:
    """Set environment variables within the block, for a Prefect that was imported before too."""
    previous_values = {name: os.environ.get(name) for name in variables}
    os.environ.update(
        {
            name: value
            for name, value in variables.items()
            if not (keep_users and previous_values[name])
        }
    )
    prefect_internals.read_settings_again()
    try:
        yield
    finally:
        for name, value in previous_values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        prefect_internals.read_settings_again()


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Let Python not look for garbage within the block, nor afterwards at what was made in it.

    Two thousand modules are imported there, and none of them becomes garbage.
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
