"""Free checks: tokens per second of other tokens are not compared."""

import json
from pathlib import Path

import pytest

from tests.stand_ins import engine
from tests.stand_ins.engine import StandInArgs
from weighbridge.core import plugins
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.measurement import Candidate, Variant
from weighbridge.tasks.search.checks import refused
from weighbridge.tasks.search.space import Branch, space_of


def candidate(label: str, tokenizer: object, tmp_path: Path, workspace: Workspace) -> Candidate:
    folder = tmp_path / label
    folder.mkdir()
    (folder / "model.gguf").write_text(label)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    variant = Variant(label=label, optimizer="made", artifact=workspace.store.add(folder, "gguf"))
    return Candidate(label=label, variant=variant, engine=StandInArgs())


def test_a_tokenizer_that_is_not_the_first_ones_is_refused_and_one_unseen_is_not(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["engine"], "stand_in", engine.PATH)
    tokenizers = {"unseen": None, "first": {"a": 1}, "same": {"a": 1}, "other": {"b": 2}}
    candidates = {
        label: candidate(label, tokenizer, tmp_path, workspace)
        for label, tokenizer in tokenizers.items()
    }
    space = space_of([Branch(label, {"threads": [1, 2]}) for label in candidates])
    reasons = refused(space, candidates, lambda _: StandInArgs())
    assert {space.settings[number]["candidate"] for number in reasons} == {"other"}
    assert len(reasons) == 2
    assert "its tokenizer is not that of first" in next(iter(reasons.values()))
