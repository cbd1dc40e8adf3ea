"""From a folder to the store: what is taken, what is refused, what is found again."""

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.tasks.models import (
    args,
    change_model,
    fetched,
    model,
    names,
    refused,
    rows,
    weights,
    write,
)
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.progress import Step, listen
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.download import (
    VERSION,
    DownloadArgs,
    Downloaded,
    download,
    identity,
    missing_bytes,
    pin,
)


def run(arguments: DownloadArgs, workspace: Workspace) -> StageOutcome[Downloaded]:
    """As the flow runs the stage."""
    pinned = pin(arguments, workspace)
    inputs = identity(pinned, arguments)
    return workspace.stages.run(
        "download", VERSION, Downloaded, inputs, lambda: download(pinned, arguments, workspace)
    )


def test_the_data_become_canonical_rows(here: DownloadArgs, workspace: Workspace) -> None:
    data = fetched(here, workspace).data
    assert names(data.path) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    assert [len(read_rows(data, split)) for split in ("train", "validation", "test")] == [36, 2, 2]


def test_data_may_be_one_file(here: DownloadArgs, workspace: Workspace, tmp_path: Path) -> None:
    file = write(tmp_path / "other", {"tickets.jsonl": rows()}) / "tickets.jsonl"
    assert fetched(args(tmp_path / "model", file), workspace).data == fetched(
        here, workspace
    ).data.model_copy(update={"origin": {"uri": f"file://{file}"}})


def test_data_may_be_several_files_of_a_pattern(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    write(
        tmp_path / "data",
        {"x/train-1.jsonl": rows(10), "x/train-2.jsonl": rows(10), "x/test.jsonl": rows(7)},
    )
    data = here.data.model_copy(
        update={
            "train": "x/train-*.jsonl",
            "validation": "x/test.jsonl",
            "test": "x/test.jsonl",
            "shared_rows": "keep",
        }
    )
    got = fetched(here.model_copy(update={"data": data}), workspace).data
    assert [len(read_rows(got, split)) for split in ("train", "validation", "test")] == [20, 7, 7]


def test_the_store_keeps_its_own_copy(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    before = fetched(here, workspace).model
    with (tmp_path / "model" / "model.safetensors").open("r+b") as stream:
        stream.write(b"changed")
    assert workspace.store.is_whole(before)
    assert (before.path / "model.safetensors").read_bytes() == weights()


def test_the_stage_is_reused_when_the_same_bytes_are_made_again(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    first = run(here, workspace)
    shutil.rmtree(tmp_path / "model")
    write(tmp_path / "model", model())
    again = run(here, workspace)
    assert (first.reused, again.reused) == (False, True)
    assert again.value == first.value


def test_the_stage_runs_again_when_one_byte_is_another(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    run(here, workspace)
    write(tmp_path / "model", model(seed=1))
    again = run(here, workspace)
    assert not again.reused
    assert again.why == "model.files.model.safetensors changed"


def test_the_stage_runs_again_with_another_mapping_of_columns(
    here: DownloadArgs, workspace: Workspace
) -> None:
    first = run(here, workspace)
    columns = {"prompt": "Q: {prompt}", "completion": "{completion}"}
    data = here.data.model_copy(
        update={
            "columns": type(here.data).model_validate({"source": "x", "columns": columns}).columns
        }
    )
    again = run(here.model_copy(update={"data": data}), workspace)
    assert not again.reused
    assert again.value.model == first.value.model
    assert again.value.data.digest != first.value.data.digest


def test_nothing_is_left_of_a_finished_download(here: DownloadArgs, workspace: Workspace) -> None:
    pinned = pin(here, workspace)
    assert missing_bytes(pinned, here, workspace.store) > 64_000
    download(pinned, here, workspace)
    assert missing_bytes(pinned, here, workspace.store) == 0
    assert not list((workspace.store.root / "partial").iterdir())


def test_progress_reaches_the_whole_size(here: DownloadArgs, workspace: Workspace) -> None:
    steps: list[Step] = []
    with listen(steps.append):
        fetched(here, workspace)
    model_steps = [step for step in steps if step.what == "downloading the model"]
    assert model_steps[0].done == 0
    assert max(step.done for step in model_steps) == model_steps[-1].total


def test_data_that_are_not_there_are_named_with_those_that_are(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    write(tmp_path / "data", {"valid.csv": b"x"})
    (tmp_path / "data" / "train.jsonl").unlink()
    write(tmp_path / "data", {"training.jsonl": rows()})
    assert "there is no train.jsonl; its data files are: training.jsonl, valid.csv" in refused(
        here, workspace
    )


def test_too_little_disk_is_said_before_anything_is_fetched(
    here: DownloadArgs, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = pin(here, workspace)
    monkeypatch.setattr("weighbridge.core.disk.free_bytes", lambda folder: 64 << 20)
    with pytest.raises(
        Unavailable,
        match=r"what is to be fetched, .* takes up to 64\.1 MiB of disk, 64\.0 MiB are free; make "
        r"room",
    ):
        download(pinned, here, workspace)
    assert not (workspace.store.root / "blobs").exists()


def test_a_file_that_changes_between_listing_and_fetching_is_refused(
    here: DownloadArgs, workspace: Workspace
) -> None:
    pinned = pin(here, workspace)
    change_model(here, "model.safetensors", lambda content: content[:-1] + b"?")
    with pytest.raises(
        BadInput,
        match=r"verifying model\.safetensors of file://.*: expected sha256 \w{64}, got \w{64}",
    ):
        download(pinned, here, workspace)


def test_planning_leaves_the_store_alone(here: DownloadArgs, workspace: Workspace) -> None:
    missing_bytes(pin(here, workspace), here, workspace.store)
    assert not workspace.store.root.exists()


def test_arguments_survive_being_written_and_read(tmp_path: Path) -> None:
    written = {
        "model": "hf://org/model@v1",
        "data": {"source": {"kind": "s3", "bucket": "b", "region": "r"}},
    }
    arguments = DownloadArgs.model_validate(written)
    assert DownloadArgs.model_validate(arguments.model_dump(mode="json")) == arguments
    assert arguments.model_dump(exclude_unset=True)["data"]["source"] == written["data"]["source"]  # type: ignore[index]


def test_a_location_is_a_uri_or_one_of_the_sources_in_the_schema() -> None:
    schema = DownloadArgs.model_json_schema()
    variants = schema["properties"]["model"]["anyOf"]
    assert variants[0]["type"] == "string"
    kinds = {variant["properties"]["kind"]["const"] for variant in variants[1:]}
    assert kinds >= {"file", "hf", "s3"}


@pytest.mark.parametrize(
    "location",
    ["ftp://x", "file://", 3, {"kind": "nothing"}, {"path": "x"}, {"kind": "hf", "repo": "a b"}],
)
def test_a_location_that_cannot_be_right_is_refused(location: object) -> None:
    with pytest.raises(ValidationError):
        DownloadArgs.model_validate({"model": location, "data": {"source": "/data"}})


def test_columns_of_data_on_this_machine_are_looked_at_before_anything_is_fetched(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    write(tmp_path / "data", {"train.jsonl": b'{"question": "a", "answer": "b"}\n'})
    with pytest.raises(BadInput, match=r"train\.jsonl, line 1: neither .*: question, answer"):
        pin(here, workspace)
    assert not (workspace.store.root / "partial").exists()


def test_a_plan_looks_at_the_first_rows_alone(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    write(tmp_path / "data", {"train.jsonl": rows(100) + b"{}\n"})
    pinned = pin(here, workspace)
    with pytest.raises(BadInput, match="line 101"):
        download(pinned, here, workspace)
