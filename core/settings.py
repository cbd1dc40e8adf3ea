"""Settings of the installation, from ``WEIGHBRIDGE_*`` environment variables."""

import os
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weighbridge"


class Settings(BaseSettings):
    """Where state lives and which services are used; every field is ``WEIGHBRIDGE_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="WEIGHBRIDGE_", frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".weighbridge",
        description="State of this installation: artifact store, MLflow and Prefect databases, deployments.",
    )
    cache: Path = Field(
        default_factory=_default_cache,
        description="What can be made again and is shared by installations: environments, pinned sources.",
    )
    tracking_uri: str = Field("", description="MLflow tracking server; empty: SQLite under home.")
    artifact_root: str = Field("", description="MLflow's artifact root (path or s3://); empty: under home.")

    @field_validator("home", "cache")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    def mlflow_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    def mlflow_artifacts(self) -> str:
        return self.artifact_root or str(self.home / "mlartifacts")
