"""Two homes, one bucket of a real S3 service."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stand_ins.swift import Swift
from tests.waiting import until
from weighbridge.core import s3
from weighbridge.core.artifact import Artifact
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.settings import Settings
from weighbridge.core.shared_store import SharedStore
from weighbridge.core.stage_cache import StageOutcome
from weighbridge.core.workspace import Workspace


class Homes:
    """Workspaces with a store in common, each as on a machine of its own."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri

    def __getitem__(self, name: str) -> Workspace:
        return Workspace(
            Settings(home=self.folder / name, cache=self.folder / "cache", store=self.uri)
        )


@pytest.fixture
def homes(bucket: str, tmp_path: Path) -> Homes:
    return Homes(tmp_path, f"s3://{bucket}/team")


def keys(swift: Swift, bucket: str) -> set[str]:
    pages = swift.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def key_of(kind: str, swift: Swift, bucket: str) -> str:
    (key,) = (key for key in keys(swift, bucket) if f"/{kind}/" in key)
    return key


def make(workspace: Workspace, content: bytes = b"{}\n") -> Artifact:
    with workspace.store.scratch() as scratch:
        (scratch / "train.jsonl").write_bytes(content)
        (scratch / "deeper").mkdir()
        (scratch / "deeper" / "same.jsonl").write_bytes(content)
        return workspace.store.add(scratch, "jsonl", {"uri": "made"})


def never() -> Artifact:
    raise AssertionError("another home has computed it")


def run(workspace: Workspace, compute: Callable[[], Artifact]) -> StageOutcome[Artifact]:
    return workspace.stages.run("download", 1, Artifact, {"of": 1}, compute)


def is_shared(workspace: Workspace, artifact: Artifact) -> bool:
    assert workspace.shared is not None
    return workspace.shared.has(artifact.digest)


def test_what_one_home_has_computed_the_other_does_not(homes: Homes) -> None:
    made = run(homes["a"], lambda: make(homes["a"]))
    assert not made.reused
    found = run(homes["b"], never)
    assert found.reused
    assert found.value == made.value
    assert (found.value.path / "deeper" / "same.jsonl").read_bytes() == b"{}\n"
    assert found.value.path.is_relative_to(homes["b"].settings.home)
    assert run(homes["b"], never).reused, "its own record, from then on"


def test_no_path_of_a_machine_is_in_what_is_recorded_or_shared(
    homes: Homes, swift_server: Swift, bucket: str
) -> None:
    made = run(homes["a"], lambda: make(homes["a"])).value
    assert str(homes.folder) not in made.model_dump_json()
    client = swift_server.client()
    for key in keys(swift_server, bucket):
        body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert str(homes.folder).encode() not in body, key


def test_bytes_travel_once_and_only_to_whom_they_are_needed(
    homes: Homes, swift_server: Swift, bucket: str
) -> None:
    run(homes["a"], lambda: make(homes["a"]))
    assert key_of("blobs", swift_server, bucket), "both files have one content: one blob"
    found = run(homes["b"], never).value
    assert homes["b"].store.digests() == [], "nobody has asked for its files yet"
    assert found.path.is_dir()
    assert homes["b"].store.digests() == [found.digest]


def test_an_artifact_that_is_handed_on_as_json_is_found_by_another_home(homes: Homes) -> None:
    made = run(homes["a"], lambda: make(homes["a"])).value
    handed_on = homes["b"].store.bind(Artifact.model_validate_json(made.model_dump_json()))
    assert (handed_on.path / "train.jsonl").is_file()
    files = [file.path for file in homes["b"].store.files(made.digest)]
    assert files == ["deeper/same.jsonl", "train.jsonl"]


def test_a_record_of_before_the_store_was_shared_is_shared_when_it_is_reused(homes: Homes) -> None:
    alone = Workspace(Settings(home=homes.folder / "a", cache=homes.folder / "cache"))
    run(alone, lambda: make(alone))
    assert run(homes["a"], never).reused
    assert run(homes["b"], never).reused


def test_what_is_damaged_here_is_not_shared(homes: Homes) -> None:
    made = make(homes["a"])
    file = made.path / "train.jsonl"
    before = file.stat()
    file.chmod(0o644)
    file.write_bytes(b"[]\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Unavailable, match="damaged or gone in the store"):
        run(homes["a"], lambda: made)
    assert not is_shared(homes["a"], made)


def test_what_is_damaged_there_is_refused(homes: Homes, swift_server: Swift, bucket: str) -> None:
    run(homes["a"], lambda: make(homes["a"]))
    blob = key_of("blobs", swift_server, bucket)
    swift_server.client().put_object(Bucket=bucket, Key=blob, Body=b"[]\n")
    found = run(homes["b"], never).value
    with pytest.raises(BadInput, match="expected sha256"):
        found.path  # noqa: B018
    assert homes["b"].store.digests() == []


@pytest.mark.parametrize(
    ("body", "wrong"), [(b"{", "is damaged"), (b'{"files": []}', "is another one's")]
)
def test_a_list_of_files_that_is_not_the_artifacts_is_refused(
    homes: Homes, swift_server: Swift, bucket: str, body: bytes, wrong: str
) -> None:
    run(homes["a"], lambda: make(homes["a"]))
    tree = key_of("trees", swift_server, bucket)
    swift_server.client().put_object(Bucket=bucket, Key=tree, Body=body)
    with pytest.raises(BadInput, match=wrong):
        run(homes["b"], never).value.path  # noqa: B018


def test_what_was_damaged_in_one_home_is_fetched_again(homes: Homes) -> None:
    made = run(homes["a"], lambda: make(homes["a"])).value
    file = made.path / "train.jsonl"
    file.chmod(0o644)
    file.write_bytes(b"[]\n")
    found = run(homes["a"], never)
    assert found.reused
    assert (found.value.path / "train.jsonl").read_bytes() == b"{}\n"


def test_what_a_record_names_and_nobody_has_is_computed_again(
    homes: Homes, swift_server: Swift, bucket: str
) -> None:
    run(homes["a"], lambda: make(homes["a"]))
    tree = key_of("trees", swift_server, bucket)
    swift_server.client().delete_object(Bucket=bucket, Key=tree)
    again = run(homes["b"], lambda: make(homes["b"]))
    assert not again.reused
    assert "is gone or damaged" in again.why


def _share_slowly(home: Path, uri: str) -> None:
    workspace = Workspace(Settings(home=home, cache=home / "cache", store=uri))
    run(workspace, lambda: make(workspace, os.urandom(48 << 20)))


def test_a_writer_that_is_killed_leaves_nothing_half_visible(
    homes: Homes, swift_server: Swift, bucket: str
) -> None:
    child = multiprocessing.get_context("spawn").Process(
        target=_share_slowly, args=(homes.folder / "a", homes.uri)
    )
    child.start()
    assert child.pid is not None
    # Its own record is written before the first byte is sent.
    records = homes.folder / "a" / "stages" / "download"
    until(lambda: any(records.glob("*.json")), 60)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert not any("/stages/" in key for key in keys(swift_server, bucket))
    # The one that was killed goes on, with the same bytes.
    value = run(homes["a"], never).value
    assert is_shared(homes["a"], value)
    assert run(homes["b"], never).value == value


def test_a_bucket_that_is_missing_is_said_in_one_line(bucket: str) -> None:
    with pytest.raises(BadInput, match="there is no such bucket"):
        SharedStore.at(f"s3://{bucket}-none/team").check()


def test_credentials_that_are_refused_are_said_before_any_work(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BadInput, match="the service refuses access"):
        SharedStore.at(f"s3://{bucket}/team").check()


def test_an_address_that_is_no_bucket_is_refused_with_the_settings(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="WEIGHBRIDGE_STORE"):
        Settings(home=tmp_path, store="/srv/store")


def test_a_release_that_is_repeated_takes_nothing_from_others(homes: Homes, tmp_path: Path) -> None:
    run(homes["a"], lambda: make(homes["a"]))
    apart = Workspace(homes["b"].settings, records=tmp_path / "records")
    assert not run(apart, lambda: make(apart)).reused


def test_a_bucket_that_may_only_be_read_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise BadInput("writing s3://team/weighbridge.store", "the service refuses access (403)")

    monkeypatch.setattr(s3, "put", refuse)
    monkeypatch.setattr(s3, "get", lambda *_: None)
    with pytest.raises(
        BadInput, match=r"^opening the shared store s3://team: it is read-only; allow PutObject"
    ):
        SharedStore.at("s3://team").check()


def test_a_clock_that_the_service_refuses_is_said_as_such() -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": "RequestTimeTooSkewed"}}
    with pytest.raises(BadInput, match=r"clock differs .* set it by NTP"), s3.translated("writing"):
        raise ClientError(answer, "PutObject")
