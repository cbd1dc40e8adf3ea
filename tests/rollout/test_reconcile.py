"""What reconciling does before a rollout begins."""

from types import SimpleNamespace
from typing import Any

import pytest

from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.rollout import reconcile
from weighbridge.rollout.champion import BENTO_DIGEST
from weighbridge.tasks.package import Packaged

DIGEST = f"sha256:{'1' * 64}"


def test_a_bento_that_a_promotion_builds_is_shared_before_its_version_names_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    shared = SimpleNamespace(push=lambda digest, store: done.append(f"shared {digest}"))
    monkeypatch.setattr(Workspace, "shared", shared)
    exported = Artifact(digest=DIGEST, format="bento", size=1)
    packaged = Packaged(
        tag="demo:1", model="m:1", digest=DIGEST, artifact=exported, lock="", start_seconds=1.0
    )
    monkeypatch.setattr(reconcile, "package", lambda *_: packaged)
    registry: Any = SimpleNamespace(tag=lambda _, tags: done.append(f"named {tags[BENTO_DIGEST]}"))
    version: Any = SimpleNamespace(name="demo", version="5", tags={}, digest="sha256:2")
    candidate: Any = None
    release = reconcile._packaged(candidate, version, 7, registry, workspace)
    assert (release.digest, release.peak_memory) == (DIGEST, 7)
    assert done == [f"shared {DIGEST}", f"named {DIGEST}"]
