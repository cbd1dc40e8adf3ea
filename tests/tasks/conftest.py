"""What a fine-tune begins with, and what is weighed of the stand-in engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stand_ins import engine
from tests.tasks.doubling import QUESTIONS, stored_questions, stored_variant
from tests.tasks.fine_tuning import chat, stored_model, stored_rows
from tests.tasks.models import args, model, rows, write
from weighbridge.core import plugins
from weighbridge.core.artifact import Artifact
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs
from weighbridge.tasks.measurement import Variant


@pytest.fixture
def here(tmp_path: Path) -> DownloadArgs:
    """A model and data in two folders."""
    write(tmp_path / "model", model())
    write(tmp_path / "data", {"train.jsonl": rows()})
    return args(f"file://{tmp_path / 'model'}", tmp_path / "data")


@pytest.fixture
def base(tiny_model: Path, workspace: Workspace) -> Artifact:
    return stored_model(tiny_model, workspace)


@pytest.fixture
def data(workspace: Workspace) -> Artifact:
    return stored_rows([chat(number) for number in range(100, 140)], workspace)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in engine is one of those that recipes may name."""
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)


@pytest.fixture
def questions(tmp_path: Path, workspace: Workspace) -> Artifact:
    return stored_questions(tmp_path / "rows", workspace)


@pytest.fixture
def variant(tmp_path: Path, workspace: Workspace) -> Callable[..., Variant]:
    """Makes a variant that knows the answers to so many of the questions."""

    def make(label: str = "whole", known: int = len(QUESTIONS)) -> Variant:
        return stored_variant(tmp_path / label, workspace, known)

    return make
