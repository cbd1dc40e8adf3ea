"""From a folder to the store: what is taken, what is refused, what is found again."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.tasks.models import (
    TAKEN,
    args,
    header,
    model,
    rows,
    sharded,
    weights,
    with_header,
    write,
)
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.progress import Step, listen
from weighbridge.core.remote_file import RemoteFile
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.data import read_rows
from weighbridge.tasks.download import (
    VERSION,
    DownloadArgs,
    Downloaded,
    download,
    identity,
    local_test_rows,
    missing_bytes,
    pin,
)
from weighbridge.tasks.sources.base import Listing, gathering
from weighbridge.tasks.sources.file import FileArgs


@pytest.fixture
def here(tmp_path: Path) -> DownloadArgs:
    """A model and data in two folders."""
    write(tmp_path / "model", model())
    write(tmp_path / "data", {"train.jsonl": rows()})
    return args(f"file://{tmp_path / 'model'}", tmp_path / "data")


def fetched(arguments: DownloadArgs, workspace: Workspace) -> Downloaded:
    return download(pin(arguments, workspace), arguments, workspace)


def run(arguments: DownloadArgs, workspace: Workspace) -> StageOutcome[Downloaded]:
    """As the flow runs the stage."""
    pinned = pin(arguments, workspace)
    inputs = identity(pinned, arguments)
    return workspace.stages.run(
        "download", VERSION, Downloaded, inputs, lambda: download(pinned, arguments, workspace)
    )


def names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def refused(arguments: DownloadArgs, workspace: Workspace) -> str:
    with pytest.raises(BadInput) as caught:
        fetched(arguments, workspace)
    assert "\n" not in str(caught.value)
    assert not list((workspace.store.root / "trees").glob("*"))
    return str(caught.value)


def change_model(arguments: DownloadArgs, path: str, change: Callable[[bytes], bytes]) -> None:
    file = Path(arguments.model.path) / path  # type: ignore[attr-defined]
    file.write_bytes(change(file.read_bytes()))


def test_a_model_is_taken_without_pickles_and_without_what_is_not_the_model(
    here: DownloadArgs, workspace: Workspace
) -> None:
    assert names(fetched(here, workspace).model.path) == TAKEN


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


@pytest.mark.parametrize(
    ("changes", "count"), [({}, 2), ({"test": "x/test.jsonl"}, 7), ({"train": "x/t.csv"}, None)]
)
def test_test_rows_on_this_machine_are_counted_before_anything_is_fetched(
    here: DownloadArgs,
    workspace: Workspace,
    tmp_path: Path,
    changes: dict[str, str],
    count: int | None,
) -> None:
    write(
        tmp_path / "data", {"x/test.jsonl": rows(7) + b"\n", "x/t.csv": b"prompt,completion\na,b\n"}
    )
    data = here.data.model_copy(update=changes)
    pinned = pin(here.model_copy(update={"data": data}), workspace)
    assert local_test_rows(pinned, data) == count


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


def test_shards_come_with_their_index(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "model", sharded())
    write(tmp_path / "data", {"train.jsonl": rows()})
    assert names(
        fetched(args(tmp_path / "model", tmp_path / "data"), workspace).model.path
    ) == sorted(sharded())


def test_weights_that_are_there_twice_are_taken_once(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    write(tmp_path / "model", {"consolidated.safetensors": weights(3)})
    assert names(fetched(here, workspace).model.path) == TAKEN


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b"x"},
            "its weights are pickles (pytorch_model.bin)",
        ),
        ({"config.json": b"{}"}, "there are no *.safetensors"),
        ({"model.safetensors": weights()}, "there is no config.json"),
        ({"config.json": b"{", "model.safetensors": weights()}, "config.json: it is not JSON"),
        (
            {"config.json": b"[]", "model.safetensors": weights()},
            "config.json: it is not a JSON object",
        ),
        (
            {path: content for path, content in sharded().items() if "00002-of" not in path},
            "it names model-00002-of-00002.safetensors, which is not there",
        ),
        (
            {path: content for path, content in sharded().items() if "index" not in path},
            "there are 2 weight files and no",
        ),
        (
            sharded() | {"model-00002-of-00002.safetensors": weights(name="c")},
            "tensor b of the index is not in it",
        ),
        (sharded() | {"model.safetensors.index.json": b"{}"}, "it has no weight_map"),
        ({"config.json": b'{"a":' * 100_000, "model.safetensors": weights()}, "nested too deep"),
        ({"config.json": b'{"a": NaN}', "model.safetensors": weights()}, "it holds NaN"),
        (
            model() | {"tokenizer_config.json": b"[" * 100_000},
            "tokenizer_config.json: it is not JSON: it is nested too deep",
        ),
        (model() | {"generation_config.json": b"\x80\x04pickle"}, "it is not JSON"),
        (model() | {"config.json": b'{"a": "' + b"a" * (17 << 20) + b'"}'}, "16.0 MiB is the most"),
    ],
)
def test_what_is_no_whole_safetensors_model_is_refused(
    workspace: Workspace, tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    write(tmp_path / "model", files)
    write(tmp_path / "data", {"train.jsonl": rows()})
    assert words in refused(args(tmp_path / "model", tmp_path / "data"), workspace)


def _shifted(content: bytes) -> bytes:
    found = header(content)
    found["w"]["data_offsets"] = [offset + 4 for offset in found["w"]["data_offsets"]]
    return with_header(content, found)


def _reshaped(content: bytes) -> bytes:
    found = header(content)
    found["w"]["shape"] = [7]
    return with_header(content, found)


def _zipped(content: bytes) -> bytes:
    """What torch.save writes: a pickle in a zip."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", content)
    return archive.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], "its tensors take"),
        (lambda content: content + b"x", "its tensors take"),
        (lambda content: b"", "does not fit"),
        (lambda content: content[:7], "does not fit"),
        (lambda content: b"\xff" * 8 + content[8:], "does not fit"),
        (lambda content: content[:8] + b"\x00" + content[9:], "its header cannot be read"),
        (lambda content: with_header(content, []), "its header is not an object"),
        (lambda content: with_header(content, {"w": {}}), "its header cannot be read"),
        (lambda content: pickle.dumps({"w": b"0" * 100}), "its header cannot be read"),
        (lambda content: _zipped(pickle.dumps({"w": 1})), "its header cannot be read"),
        (lambda content: b"\x93NUMPY\x01\x00" + pickle.dumps({"w": 1}), "cannot be read"),
        (_shifted, "starts at byte 4"),
        (_reshaped, "where its shape needs 28"),
    ],
)
def test_a_corrupted_weight_file_is_refused(
    here: DownloadArgs, workspace: Workspace, change: Callable[[bytes], bytes], words: str
) -> None:
    change_model(here, "model.safetensors", change)
    said = refused(here, workspace)
    assert said.startswith("checking model.safetensors: the file is corrupted")
    assert words in said


def test_a_folder_that_does_not_exist_is_named(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    said = refused(args(tmp_path / "nowhere", tmp_path / "data"), workspace)
    assert said == f"looking into {tmp_path}/nowhere: no such file or directory; check the path"


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


@pytest.mark.parametrize("name", ["chat_template.jinja", "model.safetensors", "LICENSE"])
def test_a_link_out_of_the_folder_is_refused(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path, name: str
) -> None:
    write(tmp_path / "elsewhere", {"key": b"secret"})
    (tmp_path / "model" / name).unlink(missing_ok=True)
    (tmp_path / "model" / name).symlink_to("../elsewhere/key")
    assert f"{name} is a link that leads out of it, to {tmp_path}/elsewhere/key" in refused(
        here, workspace
    )


def test_a_file_that_becomes_a_link_after_it_was_listed_is_refused(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    pinned = pin(here, workspace)
    shutil.move(tmp_path / "model" / "LICENSE", tmp_path / "LICENSE")
    (tmp_path / "model" / "LICENSE").symlink_to(tmp_path / "LICENSE")
    with pytest.raises(BadInput, match="is a link that leads out of it"):
        download(pinned, here, workspace)


def test_links_of_the_hubs_own_cache_are_followed(workspace: Workspace, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    write(repository / "blobs", model())
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for name in TAKEN:
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    write(tmp_path / "data", {"train.jsonl": rows()})
    assert names(fetched(args(snapshot, tmp_path / "data"), workspace).model.path) == TAKEN


def test_pipes_and_devices_are_no_files(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "model" / "chat_template.jinja")
    (tmp_path / "model" / "merges.txt").symlink_to("/dev/zero")
    assert names(fetched(here, workspace).model.path) == TAKEN


def test_a_pipe_that_is_named_itself_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "model", model())
    os.mkfifo(tmp_path / "train.jsonl")
    arguments = args(tmp_path / "model", tmp_path / "train.jsonl")
    assert "train.jsonl: it is neither a folder nor a file" in refused(arguments, workspace)


def test_a_tokenizer_larger_than_any_is_refused_before_it_is_fetched(
    here: DownloadArgs, workspace: Workspace, tmp_path: Path
) -> None:
    # A file with a hole: it takes no room.
    os.truncate(tmp_path / "model" / "tokenizer.json", 1 << 30)
    assert "tokenizer.json has 1.00 GiB, and no more than 64.0 MiB is taken" in refused(
        here, workspace
    )


@pytest.mark.parametrize(
    "path", ["../train.jsonl", "/etc/train.jsonl", "a/../../train.jsonl", "a//b", "a\nb", "a" * 300]
)
def test_a_listing_that_leads_out_of_its_folder_is_refused(workspace: Workspace, path: str) -> None:
    file = RemoteFile(path=path, size=1)
    with pytest.raises(BadInput, match="is no path below the folder"):
        gathering(
            Listing(files=[file], origin={"uri": "s3://bucket/prefix"}),
            FileArgs(path="/"),
            workspace.store,
        )


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
