"""A registry of the test's own, and artifacts to register."""

from collections.abc import Callable

import pytest

from weighbridge.core.artifact import Artifact, Format
from weighbridge.core.workspace import Workspace
from weighbridge.registry import Registry

Make = Callable[..., Artifact]


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    """MLflow on SQLite under the test's home."""
    return Registry.connect(workspace.settings)


@pytest.fixture
def make(workspace: Workspace) -> Make:
    """Stores an artifact made of one or more small files."""

    def stored(
        content: str, format: Format = "safetensors", *names: str, uri: str = ""
    ) -> Artifact:
        with workspace.store.scratch() as scratch:
            for name in names or ("weights.bin", "sub/config.json"):
                path = scratch / "files" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{name}: {content}")
            return workspace.store.add(scratch / "files", format, {"uri": uri} if uri else {})

    return stored
