"""The winner as a Bento: model, service, lineage and its own lock, proven to answer before it
counts.
"""

import json
import logging
import time
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.artifact import Artifact
from weighbridge.core.progress import track
from weighbridge.core.store import sha256_of
from weighbridge.core.workspace import Workspace
from weighbridge.serving import bento, bento_process
from weighbridge.serving.targets.base import Release
from weighbridge.tasks.measurement import Candidate

VERSION: Final = 2

logger = logging.getLogger(__name__)


class PackageArgs(BaseModel):
    """How the winner is packaged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_timeout: float = Field(
        600.0, gt=0, description="Seconds within which the packaged Bento must have answered."
    )
    push: str = Field(
        "",
        pattern=r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]*(/[^\x00-\x1f\x7f]*)?)?$",
        description="`s3://bucket/prefix` that the exported Bento is sent to as well; empty: "
        "nowhere.",
    )


class Packaged(BaseModel):
    """A Bento that has answered."""

    model_config = ConfigDict(frozen=True)

    tag: str = Field(description="In BentoML's store: `name:version`.")
    model: str = Field(description="Tag of the model in BentoML's store.")
    digest: str = Field(description="Of the exported Bento; the same as the artifact's.")
    artifact: Artifact = Field(description="The exported Bento, its model inside.")
    lock: str = Field(description="sha256 of the lock of its environment.")
    start_seconds: float = Field(description="From `bentoml serve` to the first real completion.")
    pushed: str = Field("", description="Where the exported Bento was sent to.")

    def release(self, name: str, version: str) -> Release:
        """Return what a target is asked to serve."""
        return Release(name=name, version=version, bento=self.tag, digest=self.digest)


def package(
    candidate: Candidate,
    name: str,
    version: str,
    lineage: dict[str, str],
    args: PackageArgs,
    workspace: Workspace,
) -> Packaged:
    """Build, export and prove the Bento of one candidate; the same inputs give the same Bento.

    `lineage` is written into the Bento's labels, its README and `lineage.json`. What changes from
    run to run must not be in it: every run would give another Bento. The Bento appears in BentoML's
    store (`BENTOML_HOME`) whole or not at all.

    Raises:
        Unavailable: its environment cannot be built, BentoML refuses, or the Bento does not answer.
    """
    contents = bento.Contents(
        name, version, candidate.label, candidate.engine, candidate.variant.artifact, lineage
    )
    with track(f"building Bento {contents.tag}", None):
        built = bento.build(contents, workspace.settings.cache)
    logger.info(
        "Bento %s %s in %s",
        built.tag,
        "is there already" if built.reused else "built",
        bento.bentoml_home(),
    )
    model = candidate.variant.artifact
    exported = bento.export(built, model, workspace.store, {"model": model.digest})
    # The exported one is proved, and not the one in BentoML's store: it is what travels.
    seconds = _prove(exported, args, workspace)
    logger.info("Bento %s answered %.1f s after its start", built.tag, seconds)
    lock = exported.path / "src" / bento_process.candidate_of(exported.path).lock
    return Packaged(
        tag=built.tag,
        model=f"{built.model.parent.name}:{built.model.name}",
        digest=exported.digest,
        artifact=exported,
        lock=sha256_of(lock),
        start_seconds=seconds,
        pushed=_push(exported, args.push, workspace),
    )


def lineage_of(folder: Path) -> dict[str, str]:
    """Return what a Bento in `folder` says about where it comes from."""
    lineage: dict[str, str] = json.loads((folder / "src" / "lineage.json").read_text())
    return lineage


def _prove(exported: Artifact, args: PackageArgs, workspace: Workspace) -> float:
    """Start the exported Bento in an environment made from its own lock, and have it answer."""
    log = workspace.settings.home / "logs" / f"package-{exported.short}-{time.time_ns()}.log"
    with (
        track(f"starting Bento {exported.origin['tag']}", None),
        bento_process.serve(
            exported.path, workspace.settings.cache, log, args.start_timeout
        ) as proof,
    ):
        return proof.seconds


def _push(exported: Artifact, to: str, workspace: Workspace) -> str:
    if not to:
        return ""
    from weighbridge.tasks.push import push
    from weighbridge.tasks.sources.s3 import S3Source

    return push(
        exported, S3Source().parse(f"{to.rstrip('/')}/{exported.short}"), workspace.store
    ).uri
