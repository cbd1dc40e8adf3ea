"""Where it runs: what a `target` plugin offers."""

from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field


class TargetArgs(BaseModel):
    """Base of every target's arguments; `kind` names the plugin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str


class Release(BaseModel):
    """What a target is asked to serve."""

    name: str = Field(description="Registered model.")
    version: str = Field(description="Its version in MLflow.")
    bento: str = Field(description="Bento tag.")
    digest: str = Field(description="Digest of the exported Bento.")
    peak_memory: int = Field(0, description="Bytes it took when it was weighed; 0: not known.")


class Serving(BaseModel):
    """What a target serves, as seen from outside."""

    release: Release | None
    address: str = Field(description="Base URL without `/v1`.")
    healthy: bool
    detail: str = ""
    since: float = Field(0.0, description="Unix time at which this release began to serve.")


class Target(Protocol):
    """A named place with one stable address at which one version serves."""

    Args: ClassVar[type[TargetArgs]]

    def deploy(self, target: str, args: Any, release: Release, home: Path) -> Serving:
        """Serve `release`; the one before serves again if this one does not answer. Raises Unavailable."""

    def serves(self, target: str, args: Any, release: Release, home: Path) -> Serving | None:
        """What is served, where that is this very release, under these arguments, and it answers; else None."""

    def status(self, target: str, home: Path) -> Serving:
        """What is served now."""

    def down(self, target: str, home: Path) -> None:
        """Stop serving and leave no process behind."""
