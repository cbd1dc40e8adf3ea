"""Against OpenStack Swift, a real S3 service: downloading, pushing, and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.stand_ins.swift import ACCESS_KEY, REGION, SECRET_KEY, Swift
from tests.tasks.models import TAKEN, args, model, rows, write
from weighbridge.core import ranges, s3
from weighbridge.core.artifact import File, digest_of
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.core.store import Store, sha256_of
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs, Downloaded, download, identity, pin
from weighbridge.tasks.push import MANIFEST, pull, push, push_folder
from weighbridge.tasks.sources.s3 import S3Args, S3Source


def put(swift: Swift, bucket: str, prefix: str, files: dict[str, bytes]) -> None:
    """Objects as any other tool stores them: without a digest."""
    client = swift.client()
    for path, content in files.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path}", Body=content)


@pytest.fixture
def there(swift_server: Swift, bucket: str) -> DownloadArgs:
    """A model and data in the bucket."""
    put(swift_server, bucket, "models/tiny", model())
    put(swift_server, bucket, "models/tiny-not-this", {"model.safetensors": b"no"})
    put(swift_server, bucket, "data", {"train.jsonl": rows()})
    return args(f"s3://{bucket}/models/tiny", f"s3://{bucket}/data/")


def fetched(arguments: DownloadArgs, workspace: Workspace) -> Downloaded:
    return download(pin(arguments, workspace), arguments, workspace)


def place(bucket: str, prefix: str = "pushed") -> S3Args:
    return S3Args(bucket=bucket, prefix=prefix)


def test_a_model_and_data_come_out_of_a_bucket(there: DownloadArgs, workspace: Workspace) -> None:
    got = fetched(there, workspace)
    assert sorted(path.name for path in got.model.path.iterdir()) == TAKEN
    assert (got.model.path / "model.safetensors").read_bytes() == model()["model.safetensors"]


def test_a_changed_object_changes_the_stage(
    there: DownloadArgs, workspace: Workspace, swift_server: Swift, bucket: str
) -> None:
    before = identity(pin(there, workspace), there)
    assert identity(pin(there, workspace), there) == before
    put(
        swift_server,
        bucket,
        "models/tiny",
        {"model.safetensors": model(seed=1)["model.safetensors"]},
    )
    assert identity(pin(there, workspace), there) != before


def test_an_object_that_changes_after_the_listing_is_refused(
    there: DownloadArgs, workspace: Workspace, swift_server: Swift, bucket: str
) -> None:
    pinned = pin(there, workspace)
    put(
        swift_server,
        bucket,
        "models/tiny",
        {"model.safetensors": model(seed=1)["model.safetensors"]},
    )
    with pytest.raises(BadInput, match="it was changed while it was being fetched"):
        download(pinned, there, workspace)


def test_an_object_that_is_not_what_its_metadata_says_is_refused(
    there: DownloadArgs, workspace: Workspace, swift_server: Swift, bucket: str
) -> None:
    swift_server.client().put_object(
        Bucket=bucket, Key="models/tiny/config.json", Body=b"{ }", Metadata={"sha256": "0" * 64}
    )
    with pytest.raises(
        BadInput, match=r"verifying config\.json of s3://.*: expected sha256 0{64}, got \w{64}"
    ):
        fetched(there, workspace)


def test_a_large_object_comes_in_parallel_ranges(
    workspace: Workspace,
    swift_server: Swift,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "PART", 1 << 20)
    content = os.urandom((3 << 20) + 5)
    put(swift_server, bucket, "x", {"big": content})
    source, where = S3Source(), place(bucket, "x")
    listing = source.list_files(where)
    moved: list[int] = []
    source.fetch(where, listing, listing.files[0], tmp_path / "big", moved.append)
    assert (tmp_path / "big").read_bytes() == content
    assert sum(moved) == len(content)
    assert not (tmp_path / "big.parts").exists()


def test_an_endpoint_can_be_given_in_the_arguments(
    there: DownloadArgs,
    workspace: Workspace,
    swift_server: Swift,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    where = S3Args(
        bucket=bucket, prefix="models/tiny", endpoint_url=swift_server.url, region=REGION
    )
    assert len(S3Source().list_files(where).files) == len(model())


def test_credentials_come_from_a_profile(
    there: DownloadArgs,
    swift_server: Swift,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    secrets = tmp_path / "credentials"
    secrets.write_text(
        f"[lab]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secrets))
    where = S3Args(bucket=bucket, prefix="models/tiny", profile="lab")
    assert len(S3Source().list_files(where).files) == len(model())


@pytest.mark.parametrize(
    ("variable", "value", "kind", "words"),
    [
        (
            "AWS_SECRET_ACCESS_KEY",
            "wrong",
            BadInput,
            "the service refuses access (SignatureDoesNotMatch)",
        ),
        ("AWS_ACCESS_KEY_ID", "test:nobody", BadInput, "the service refuses access"),
        (
            "AWS_ENDPOINT_URL",
            "http://127.0.0.1:1",
            Unavailable,
            "Could not connect to the endpoint URL",
        ),
        ("AWS_ENDPOINT_URL", "nonsense", BadInput, "Invalid endpoint"),
        ("AWS_PROFILE", "nobody", BadInput, "The config profile (nobody) could not be found"),
    ],
)
def test_a_service_that_cannot_be_used_is_one_line(
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    kind: type[Exception],
    words: str,
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(kind) as caught:
        S3Source().list_files(place(bucket))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_credentials_are_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(BadInput, match="Unable to locate credentials"):
        S3Source().list_files(place(bucket))


@pytest.mark.parametrize(
    ("name", "prefix", "words"),
    [
        ("no-such-bucket", "x", "there is no such bucket"),
        ("", "nothing", "there is nothing below it"),
    ],
)
def test_what_is_not_there_is_named(bucket: str, name: str, prefix: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        S3Source().list_files(place(name or bucket, prefix))


def test_what_cannot_be_a_buckets_name_is_refused_before_anybody_is_asked() -> None:
    with pytest.raises(ValidationError, match="bucket"):
        place("not a bucket")


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3:/x"])
def test_a_malformed_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadInput, match="it is not s3://bucket/prefix"):
        S3Source().parse(uri)


def test_what_is_pushed_comes_back_the_same(
    bucket: str, workspace: Workspace, tmp_path: Path
) -> None:
    write(
        tmp_path / "made", {"a/b.txt": b"text", "model.safetensors": os.urandom(1000), "empty": b""}
    )
    artifact = workspace.store.add(tmp_path / "made", "gguf", {"uri": "somewhere"})
    pushed = push(artifact, place(bucket), workspace.store)
    assert pushed.uploaded == ["a/b.txt", "empty", "model.safetensors"]
    assert pushed.uri == f"s3://{bucket}/pushed"
    other = Store(tmp_path / "other")
    back = pull(place(bucket), other)
    assert (back.digest, back.format, back.origin) == (
        artifact.digest,
        "gguf",
        {"uri": "somewhere"},
    )
    assert (back.path / "a" / "b.txt").read_bytes() == b"text"
    assert other.is_whole(back)


def test_what_is_there_already_is_not_sent_again(bucket: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "bento", {"a": b"1", "b": b"2"})
    push_folder(folder, "bento", place(bucket))
    (folder / "b").write_bytes(b"3")
    again = push_folder(folder, "bento", place(bucket))
    assert (again.uploaded, again.present, again.uploaded_bytes) == (["b"], ["a"], 1)
    assert push_folder(folder, "bento", place(bucket)).uploaded == []


def test_a_large_file_is_pushed_in_parts_and_carries_its_digest(
    bucket: str, swift_server: Swift, tmp_path: Path
) -> None:
    folder = write(tmp_path / "big", {"weights": os.urandom(33 << 20)})
    push_folder(folder, "gguf", place(bucket))
    about = swift_server.client().head_object(Bucket=bucket, Key="pushed/weights")
    assert about["Metadata"]["sha256"] == sha256_of(folder / "weights")
    assert about["ETag"].endswith('-3"')
    back = pull(place(bucket), Store(tmp_path / "other"))
    assert sha256_of(back.path / "weights") == about["Metadata"]["sha256"]


def test_a_pushed_model_is_a_source_with_digests(
    bucket: str, workspace: Workspace, tmp_path: Path
) -> None:
    push_folder(write(tmp_path / "model", model()), "safetensors", place(bucket, "model"))
    write(tmp_path / "data", {"train.jsonl": rows()})
    pinned = pin(args(f"s3://{bucket}/model", tmp_path / "data"), workspace)
    assert all(file.sha256 for file in pinned.model.files)


def test_a_bucket_that_does_not_exist_takes_no_push(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match="uploading a to s3://no-such-bucket/pushed/a: there is no such bucket"
    ):
        push_folder(write(tmp_path / "x", {"a": b"1"}), "bento", place("no-such-bucket"))


def test_a_folder_that_is_missing_or_empty_is_not_pushed(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no such folder, or it is empty"):
        push_folder(tmp_path / "none", "bento", place(bucket))


def test_what_was_not_pushed_to_the_end_is_not_pulled(
    bucket: str, swift_server: Swift, tmp_path: Path
) -> None:
    push_folder(write(tmp_path / "x", {"a": b"1"}), "bento", place(bucket))
    swift_server.client().delete_object(Bucket=bucket, Key=f"pushed/{MANIFEST}")
    with pytest.raises(BadInput, match="nothing was pushed there, or not to the end"):
        pull(place(bucket), Store(tmp_path / "store"))


@pytest.mark.parametrize(
    "content", [b"{", b'{"digest": "sha256:0", "format": "gguf", "files": []}']
)
def test_a_damaged_manifest_is_refused(bucket: str, tmp_path: Path, content: bytes) -> None:
    s3.put(place(bucket), f"pushed/{MANIFEST}", content)
    with pytest.raises(BadInput, match=MANIFEST):
        pull(place(bucket), Store(tmp_path / "store"))


def test_a_manifest_cannot_write_outside_the_store(bucket: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a": b"1"})
    push_folder(folder, "bento", place(bucket))
    body = s3.get(place(bucket), f"pushed/{MANIFEST}")
    assert body
    manifest = json.loads(body)
    manifest["files"][0]["path"] = "../../evil"
    manifest["digest"] = digest_of([File.model_validate(manifest["files"][0])])
    s3.put(place(bucket), f"pushed/{MANIFEST}", json.dumps(manifest).encode())
    with pytest.raises(BadInput, match="is no path below the folder"):
        pull(place(bucket), Store(tmp_path / "store"))


def test_an_object_replaced_after_the_push_is_not_pulled(
    bucket: str, swift_server: Swift, tmp_path: Path
) -> None:
    push_folder(write(tmp_path / "x", {"a": b"1"}), "bento", place(bucket))
    swift_server.client().put_object(Bucket=bucket, Key="pushed/a", Body=b"2")
    with pytest.raises(BadInput, match="verifying a of s3://"):
        pull(place(bucket), Store(tmp_path / "store"))


KILLED = """
import sys
from weighbridge.core.workspace import Workspace
from weighbridge.tasks.download import DownloadArgs, download, pin
from weighbridge.core import ranges
ranges.PART = 1 << 20
args = DownloadArgs.model_validate_json(sys.argv[1])
workspace = Workspace()
download(pin(args, workspace), args, workspace)
"""


@pytest.mark.slow
def test_a_killed_download_goes_on(
    there: DownloadArgs,
    workspace: Workspace,
    swift_server: Swift,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Parts that had arrived are not moved again, and the result is whole."""
    big = model(kilobytes=64 << 10)["model.safetensors"]
    put(swift_server, bucket, "models/tiny", {"model.safetensors": big})
    command = [sys.executable, "-c", KILLED, json.dumps(there.model_dump(mode="json"))]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not any(len(notes.read_text().splitlines()) > 4 for notes in _notes(workspace)):
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    monkeypatch.setattr(ranges, "PART", 1 << 20)
    (notes,) = _notes(workspace)
    kept = {int(line) for line in notes.read_text().splitlines()[1:]}
    asked: set[int] = set()
    reader = s3.reader

    def noting(place: s3.S3Location, key: str, version: str) -> ranges.ReadRange:
        read = reader(place, key, version)

        def noted(start: int, end: int) -> Iterator[bytes]:
            asked.add(start)
            return read(start, end)

        return noted

    monkeypatch.setattr(s3, "reader", noting)
    got = fetched(there, workspace)
    assert len(kept) >= 4
    assert not (kept - {0}) & asked
    assert (got.model.path / "model.safetensors").read_bytes() == big


def _notes(workspace: Workspace) -> list[Path]:
    """The notes of the large file."""
    found = workspace.store.root.glob("partial/*/bytes")
    return [path.with_name("bytes.parts") for path in found if path.stat().st_size > 1 << 20]
