"""What a fine-tune begins with."""

from pathlib import Path

import pytest

from tests.tasks.fine_tuning import chat, stored_model, stored_rows
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace


@pytest.fixture
def base(tiny_model: Path, workspace: Workspace) -> Artifact:
    return stored_model(tiny_model, workspace)


@pytest.fixture
def data(workspace: Workspace) -> Artifact:
    return stored_rows([chat(number) for number in range(100, 140)], workspace)
