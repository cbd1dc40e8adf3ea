"""The cluster that tests of this folder run in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import Lab, lab, real_lab
from weighbridge.core.workspace import Workspace


@pytest.fixture
def shop(
    request: pytest.FixtureRequest,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Lab]:
    """A target without versions: in the stand-in, or where a test asks for it, in a real cluster,
    which is skipped where there is none.
    """
    if getattr(request, "param", "stand-in") == "cluster":
        with real_lab(workspace, monkeypatch) as shop:
            yield shop
    else:
        with lab(workspace, monkeypatch, tmp_path) as shop:
            yield shop
