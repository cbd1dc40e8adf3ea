"""Prefect's settings, as environment variables: for a run, for the platform, for the user's API."""

import os
import secrets
import tomllib
from pathlib import Path

from weighbridge.core import own_secrets
from weighbridge.core.settings import Settings

POSTGRESQL_SCHEMA = "prefect"
_SELDOM = (
    *("LATE_RUNS", "PAUSE_EXPIRATIONS", "CLEANUP_RECONCILER"),
    *("FOREMAN", "CANCELLATION_CLEANUP", "REPOSSESSOR"),
)
"""What marks runs as late, workers as gone and the like: a minute later does no harm."""
_LOGGING = Path(__file__).with_name("prefect_logging.yaml")


def users_api() -> str | None:
    """Return the API that the user told Prefect about, or None.

    It stands in the environment, or in Prefect's active profile.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    try:
        profiles = tomllib.loads(path.read_text())
        profile = os.environ.get("PREFECT_PROFILE") or profiles["active"]
        return str(profiles["profiles"][profile]["PREFECT_API_URL"])
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError):
        return None


def for_every_api() -> dict[str, str]:
    """Return the settings of whoever runs flows, whatever API it reports to."""
    return {
        "PREFECT_LOGGING_SETTINGS_PATH": str(_LOGGING),
        # Our handler sees lines from outside of flows as well; Prefect would warn of each.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "DO_NOT_TRACK": "1",
    }


def login(home: Path) -> tuple[str, str] | None:
    """Return user and password of the platform's API; None where it has never been up."""
    user, separator, password = (own_secrets.read(home, "prefect") or "").partition(":")
    return (user, password) if separator else None


def client_secrets(home: Path) -> dict[str, str]:
    """Return the settings by which Prefect's client logs in to the platform's API."""
    auth = own_secrets.read(home, "prefect")
    return {"PREFECT_API_AUTH_STRING": auth} if auth else {}


def for_platform(settings: Settings, url: str) -> dict[str, str]:
    """Return the settings of the platform's server and of whoever reports to it; no secrets."""
    port = int(url.removesuffix("/api").rpartition(":")[2])
    database = {"PREFECT_SERVER_DATABASE_SQLALCHEMY_CONNECT_ARGS_SEARCH_PATH": POSTGRESQL_SCHEMA}
    if postgresql_url(settings) is None:
        database = {"PREFECT_API_DATABASE_CONNECTION_URL": _sqlite(settings.home / "prefect")}
    return {
        **for_every_api(),
        **_for_every_server(settings.home / "prefect", url),
        **database,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(settings.origins(port)),
        "PREFECT_SERVER_UI_ENABLED": "true",
        # How long somebody who presses Run in the UI may wait. Every question costs an idle server
        # 20 ms of a processor.
        "PREFECT_WORKER_QUERY_SECONDS": "10",
        # A worker that starts before the server says only with its next heartbeat that it is there.
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "15",
        # Of an idle server's time these loops take the most; Prefect runs them every 5 to 20 s.
        **dict.fromkeys(
            (f"PREFECT_SERVER_SERVICES_{service}_LOOP_SECONDS" for service in _SELDOM), "60"
        ),
        # Within these, a schedule that somebody has just made is planned.
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "30",
    }


def postgresql_url(settings: Settings) -> str | None:
    """Return the database's URL as Prefect wants it, or None where SQLite is used.

    It may hold a password.
    """
    url = settings.postgresql_url("asyncpg")
    # libpq's name for it, which MLflow's driver takes, is not asyncpg's.
    return url.replace("sslmode=", "ssl=") if url else None


def _sqlite(home: Path) -> str:
    return f"sqlite+aiosqlite:///{home / 'prefect.db'}"


def _for_every_server(home: Path, url: str) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        # One that Prefect brings along, and that names no address: the user's own says nothing
        # here.
        "PREFECT_PROFILE": "ephemeral",
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
        # The server does not ask for such tokens: fetching one is a request in vain.
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        # Many share the database: wait for the others' writes rather than fail.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        # A transaction for many events instead of one for each.
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
        # Plain HTTP to ourselves: reading the certificate store for every client is in vain.
        "PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true",
    }


def for_own_server(home: Path, url: str, migrate: bool) -> dict[str, str]:
    """Return the settings of a run's own server: what only visitors need is off."""
    off = (
        "PREFECT_SERVER_UI_ENABLED",
        "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED",
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED",
        "PREFECT_SERVER_SERVICES_EVENT_LOGGER_ENABLED",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START",
    )
    # Whoever is on this machine could else have its flows run, or their records changed.
    auth = f"{own_secrets.PREFECT_USER}:{secrets.token_urlsafe(32)}"
    return {
        **for_every_api(),
        **_for_every_server(home, url),
        **dict.fromkeys(off, "false"),
        "PREFECT_SERVER_API_AUTH_STRING": auth,
        "PREFECT_API_AUTH_STRING": auth,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url.removesuffix("/api"),
        "PREFECT_API_DATABASE_CONNECTION_URL": _sqlite(home),
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": str(migrate),
        # No kind of it. `false` would still stand for vacuuming events.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "[]",
    }
