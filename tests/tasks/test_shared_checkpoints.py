"""Checkpoints that go from one machine to another."""

from pathlib import Path

import pytest

from tests.stand_ins.bucket import Bucket
from tests.tasks.fine_tuning import arguments, run_folders
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.workspace import Workspace
from weighbridge.tasks import shared_checkpoints
from weighbridge.tasks.shared_checkpoints import SharedCheckpoints

STORE = "s3://bucket/team"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    bucket = Bucket()
    bucket.take_place(monkeypatch)
    return bucket


def checkpoint(folder: Path, step: int) -> Path:
    from weighbridge.tasks.training import _mark_whole

    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "adapter.safetensors").write_text(f"weights of {step}")
    _mark_whole(made)
    return made


def share(folder: Path, *steps: int) -> None:
    checkpoints = SharedCheckpoints("run", SharedStore.at(STORE))
    with checkpoints.sharing():
        for step in steps:
            checkpoints.share(checkpoint(folder, step))
            checkpoints._pool.submit(lambda: None).result()


def fetched(folder: Path) -> list[str]:
    SharedCheckpoints("run", SharedStore.at(STORE)).fetch(folder)
    return sorted(path.name for path in folder.glob("*"))


def test_the_last_one_is_shared_and_those_before_are_not_kept(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_checkpoints, "EVERY", 0.0)
    share(tmp_path / "a", 2, 4)
    assert {key.split("/")[3] for key in bucket.objects} == {"4", "last.json"}
    assert fetched(tmp_path / "b") == ["checkpoint-4"]
    file = tmp_path / "b" / "checkpoint-4" / "adapter.safetensors"
    assert file.read_text() == "weights of 4"
    assert sorted(path.name for path in (tmp_path / "a").glob("*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]


def test_they_are_not_shared_more_often_than_once_a_minute(bucket: Bucket, tmp_path: Path) -> None:
    share(tmp_path / "a", 2, 4)
    assert fetched(tmp_path / "b") == ["checkpoint-2"]


def test_a_machine_that_is_as_far_on_goes_on_from_its_own(bucket: Bucket, tmp_path: Path) -> None:
    share(tmp_path / "a", 2)
    checkpoint(tmp_path / "b", 3)
    assert fetched(tmp_path / "b") == ["checkpoint-3"]


def test_a_damaged_one_is_left_and_training_begins_all_the_same(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    share(tmp_path / "a", 2)
    (key,) = (key for key in bucket.objects if key.endswith("adapter.safetensors"))
    bucket.objects[key] = b"weights of X"
    assert fetched(tmp_path / "b") == []
    assert "adapter.safetensors of step 2 is damaged" in caplog.text


@pytest.mark.slow
def test_a_fine_tune_goes_on_in_another_home_and_ends_with_the_same_weights(
    base: Artifact,
    data: Artifact,
    workspace: Workspace,
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from weighbridge.tasks.finetune import finetune

    class Killed(BaseException):
        pass

    def killed(step: int, _: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    whole = finetune(base, data, arguments(), workspace)
    monkeypatch.setattr(shared_checkpoints, "EVERY", 0.0)
    args = arguments()
    first, second = (
        Workspace(Settings(home=tmp_path / name, store=STORE)) for name in ("one", "other")
    )
    with pytest.raises(Killed):
        finetune(base, data, args, first, killed)
    assert run_folders(first)
    resumed = finetune(base, data, args, second)
    assert resumed.facts["resumed_from"] == "checkpoint-4"
    assert resumed.losses == whole.losses
    assert resumed.merged.digest == whole.merged.digest
