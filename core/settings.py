"""Settings of the installation, from ``WEIGHBRIDGE_*`` environment variables."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from weighbridge.core.errors import BadInput
from weighbridge.core.field_types import absolute

_POSTGRESQL = ("postgresql", "postgres")
_OWN_HOSTS = ("127.0.0.1", "localhost")


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weighbridge"


def names(listed: str) -> list[str]:
    """Return what a setting lists with commas, or white space, between."""
    return listed.replace(",", " ").split()


class Settings(BaseSettings):
    """Where state lives and which services are used; every field is ``WEIGHBRIDGE_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="WEIGHBRIDGE_", frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".weighbridge",
        description="State of this installation: artifact store, MLflow and Prefect databases, "
        "deployments.",
    )
    store: str = Field(
        "",
        pattern=r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[^\x00-\x1f\x7f]*)?)?$",
        description="`s3://bucket/prefix` through which several homes share artifacts and finished "
        "stages; empty: this home keeps its own.",
    )
    cache: Path = Field(
        default_factory=_default_cache,
        description="What can be made again and is shared by installations: environments, pinned "
        "sources.",
    )
    tracking_uri: str = Field("", description="MLflow tracking server; empty: the database below.")
    artifact_root: str = Field(
        "", description="MLflow's artifact root (path or s3://); empty: under home."
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="postgresql://USER:PASSWORD@HOST/DATABASE for MLflow and Prefect, each in a "
        "schema of its own; empty: SQLite files under home.",
    )
    prefect_port: int = Field(
        4200, ge=0, le=65535, description="Of Prefect's server; 0: any that is free."
    )
    mlflow_port: int = Field(
        5000, ge=0, le=65535, description="Of MLflow's server; 0: any that is free."
    )
    deployer_port: int = Field(
        4280, ge=0, le=65535, description="Of the deployer; 0: any that is free."
    )
    metrics_port: int = Field(
        4290, ge=0, le=65535, description="Of the gateway's metrics; 0: any that is free."
    )
    reconcile_seconds: float = Field(
        15.0, gt=0, description="How often the deployer compares desired and actual state."
    )
    history_kept: int = Field(
        3, ge=1, description="Versions before the one that serves that are kept whole."
    )
    fast_start: bool = Field(
        True,
        description="Start Prefect and MLflow faster by names inside them that are not public. "
        "Where one is gone, or with false: by public names alone, a few seconds slower.",
    )
    allowed_hosts: str = Field(
        "",
        description="Names, with commas between, under which a reverse proxy of yours shows "
        "Prefect's and MLflow's pages; this machine's own are always allowed.",
    )
    worker_variables: str = Field(
        "",
        description="Names of further environment variables that runs of the worker get, with "
        "commas between; `*` stands for any characters.",
    )
    recipe_variables: str = Field(
        "",
        description="Names of environment variables that a recipe may use as `${NAME}`, with "
        "commas between; without it: `WEIGHBRIDGE_…` and those that hold a path.",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="Signs what MLflow tells the deployer; made by `weighbridge up`."
    )

    def __init__(self, **values: Any) -> None:
        """Read the settings. Raises BadInput where one cannot be right."""
        try:
            super().__init__(**values)
        except ValidationError as exc:
            # Without the values: one may hold a password.
            wrong = [
                f"WEIGHBRIDGE_{'_'.join(map(str, error['loc'])).upper()}: "
                + error["msg"].removeprefix("Value error, ")
                for error in exc.errors(include_input=False)
            ]
            raise BadInput("reading the settings", "; ".join(wrong)) from None

    @field_validator("home", "cache")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        if any(not character.isprintable() for character in str(path)):
            raise ValueError("a path with a line break, or with another character of that kind")
        # Services and workers read the same settings in other working directories.
        return absolute(path)

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, url: SecretStr) -> SecretStr:
        scheme, separator, _ = url.get_secret_value().partition("://")
        if url.get_secret_value() and (
            not separator or scheme.partition("+")[0] not in _POSTGRESQL
        ):
            raise ValueError("only postgresql://USER:PASSWORD@HOST/DATABASE is known")
        return url

    def hosts(self) -> list[str]:
        """Return the names under which the services may be asked."""
        return [*_OWN_HOSTS, *names(self.allowed_hosts)]

    def origins(self, port: int) -> list[str]:
        """Return the origins of pages that may ask the service at this port."""
        own = [f"http://{host}:{port}" for host in _OWN_HOSTS]
        proxied = names(self.allowed_hosts)
        return own + [f"{scheme}://{host}" for host in proxied for scheme in ("https", "http")]

    def mlflow_uri(self) -> str:
        """Return the address of MLflow: a server's, or that of a database."""
        if self.tracking_uri:
            return self.tracking_uri
        return self.postgresql_url("psycopg2", "mlflow") or f"sqlite:///{self.home / 'mlflow.db'}"

    def mlflow_artifacts(self) -> str:
        """Return the folder, or the s3:// address, under which MLflow keeps files."""
        return self.artifact_root or str(self.home / "mlartifacts")

    def postgresql_url(self, driver: str, schema: str | None = None) -> str | None:
        """Return the database's URL for a driver of SQLAlchemy; None where SQLite is used.

        Args:
            driver: Such as `psycopg2`.
            schema: Where psycopg2 finds its tables; other drivers do not take it in the URL.
        """
        _, separator, rest = self.database_url.get_secret_value().partition("://")
        if not separator:
            return None
        url = f"postgresql+{driver}://{rest}"
        if schema is None:
            return url
        # libpq's own option, so that MLflow, which knows no schemas, finds its tables.
        return f"{url}{'&' if '?' in rest else '?'}options={quote(f'-csearch_path={schema}')}"
