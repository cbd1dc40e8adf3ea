"""S3 transport that downloading, pushing and the shared store have in common: clients, listings,
parallel ranges, uploads that carry their digest.

Any S3 service: the endpoint comes from the arguments or AWS_ENDPOINT_URL, credentials from boto3's
own chain.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field

from weighbridge.core.errors import BadInput, Unavailable, WeighbridgeError
from weighbridge.core.field_types import PathText
from weighbridge.core.formatting import one_line
from weighbridge.core.progress import Advance
from weighbridge.core.ranges import ReadRange, Transient, fetch_ranges
from weighbridge.core.remote_file import RemoteFile

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

SHA256: Final = "sha256"
"""Name of the user metadata that holds an object's hex digest."""
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
URI: Final = re.compile(r"s3://(?P<bucket>[^/\s]+)(/(?P<prefix>.*))?")
# Eight files at once in four ranges (or upload parts) each: more would wait for a connection.
CONNECTIONS: Final = 32
CHUNK: Final = 1 << 20
UPLOAD_PART: Final = 16 << 20
MOST_AT_ONCE: Final = 1000
"""Objects that S3 removes in one call."""
# An answer to HEAD has no body, so boto3 has the bare status for a code there: "404", "403".
MISSING: Final = ("NoSuchBucket", "NoSuchKey", "404", "NotFound")
REFUSED: Final = (
    "AccessDenied",
    "403",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
)


class S3Location(BaseModel):
    """A bucket and what keys in it begin with. Credentials are never written here: boto3's own
    chain finds them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the bucket.")
    prefix: PathText = Field("", description="What the keys begin with, up to a slash.")
    endpoint_url: str = Field(
        "",
        # No user and password in it: a recipe is stored in clear.
        pattern=r"^(https?://[^@\s\x00-\x1f\x7f]+)?$",
        description="Address of the service; empty: AWS_ENDPOINT_URL, else Amazon's.",
    )
    region: PathText = Field("", description="Region; empty: AWS's own configuration.")
    profile: PathText = Field(
        "", description="Profile of AWS's shared configuration; empty: the default one."
    )

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.folder}".rstrip("/")

    @property
    def folder(self) -> str:
        """The prefix as it stands before a file's path: empty, or with a slash at its end."""
        prefix = self.prefix.strip("/")
        return f"{prefix}/" if prefix else ""


def split(uri: str) -> tuple[str, str]:
    """Return bucket and prefix of `s3://bucket/prefix`. Raises BadInput."""
    match = URI.fullmatch(uri)
    if not match:
        raise BadInput(f"reading '{uri}'", "it is not s3://bucket/prefix")
    return match["bucket"], (match["prefix"] or "").strip("/")


def connect(location: S3Location) -> "S3Client":
    """Return a client, shared by all threads as long as place and environment stay as they are.

    Raises:
        BadInput: the profile or the endpoint cannot be right.
    """
    # boto3 reads the environment when a client is made; as part of the cache's key, the variables
    # give a new client when they change.
    variables = tuple(
        sorted(variable for variable in os.environ.items() if variable[0].startswith("AWS_"))
    )
    with translated(f"connecting to {location.uri}"):
        try:
            return _client(location.endpoint_url, location.region, location.profile, variables)
        except ValueError as exc:
            raise BadInput(
                f"connecting to {location.uri}", str(exc), "check endpoint_url and AWS_ENDPOINT_URL"
            ) from exc


@lru_cache(maxsize=8)
def _client(
    endpoint_url: str, region: str, profile: str, variables: tuple[tuple[str, str], ...]
) -> "S3Client":
    import boto3
    from botocore.config import Config

    config = Config(
        max_pool_connections=CONNECTIONS,
        connect_timeout=10,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": 4},
    )
    session = boto3.Session(profile_name=profile or None, region_name=region or None)
    # Clients may be shared between threads; sessions may not, so each client has one of its own.
    client: S3Client = session.client("s3", endpoint_url=endpoint_url or None, config=config)
    return client


@dataclass(frozen=True)
class Stored:
    """An object, and when it was written last, as Unix time."""

    file: RemoteFile
    written: float


def stored_below(location: S3Location) -> list[Stored]:
    """Return every object below the prefix.

    Raises:
        BadInput: there is no such bucket, or the credentials are refused.
        Unavailable: the service does not answer.
    """
    client = connect(location)
    with translated(f"listing {location.uri}"):
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=location.folder
        )
        return [
            Stored(
                RemoteFile(
                    path=entry["Key"].removeprefix(location.folder),
                    size=entry["Size"],
                    version=entry["ETag"],
                ),
                entry["LastModified"].timestamp(),
            )
            for page in pages
            for entry in page.get("Contents", [])
            # Consoles show folders by empty objects with such names.
            if not entry["Key"].endswith("/")
        ]


def list_objects(location: S3Location) -> list[RemoteFile]:
    """Return every object below the prefix.

    Raises:
        BadInput: there is no such bucket, or nothing is there.
        Unavailable: the service does not answer.
    """
    files = [stored.file for stored in stored_below(location)]
    if not files:
        raise BadInput(
            f"listing {location.uri}", "there is nothing below it", "check bucket and prefix"
        )
    return files


def head(location: S3Location, key: str) -> RemoteFile | None:
    """Return what is stored under a key, with the digest it carries; None if there is nothing."""
    from botocore.exceptions import ClientError

    with translated(f"looking at s3://{location.bucket}/{key}"):
        try:
            response = connect(location).head_object(Bucket=location.bucket, Key=key)
        except ClientError as exc:
            if _code(exc) in MISSING:
                return None
            raise
    sha256 = response["Metadata"].get(SHA256, "")
    # Anybody may have set that metadata: only what looks like a digest is taken for one.
    digest = sha256 if DIGEST.fullmatch(sha256) else ""
    return RemoteFile(
        path=key, size=response["ContentLength"], sha256=digest, version=response["ETag"]
    )


def reader(location: S3Location, key: str, version: str) -> ReadRange:
    """Return what reads ranges of one object, and not a byte of another version of it."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    client = connect(location)
    doing = f"downloading s3://{location.bucket}/{key}"

    def read(start: int, end: int) -> Iterator[bytes]:
        byte_range = f"bytes={start}-{end - 1}"
        with translated(doing):
            try:
                if version:
                    response = client.get_object(
                        Bucket=location.bucket, Key=key, Range=byte_range, IfMatch=version
                    )
                else:
                    response = client.get_object(Bucket=location.bucket, Key=key, Range=byte_range)
                with response["Body"] as body:
                    while chunk := body.read(CHUNK):
                        yield chunk
            except ClientError as exc:
                # 412 Precondition Failed: the object no longer has the ETag of IfMatch.
                if exc.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                    raise BadInput(
                        doing, "it was changed while it was being fetched", "run again"
                    ) from exc
                raise
            except (BotoCoreError, HTTPError, ConnectionError) as exc:
                if _is_configuration(exc):
                    raise
                raise Transient(str(exc)) from exc

    return read


def download(location: S3Location, file: RemoteFile, to: Path, advance: Advance) -> None:
    """Write the object of a file, which lies below the location's prefix, to `to`.

    What an earlier call has left there is gone on with.

    Raises:
        BadInput: bucket or credentials are refused, or the object is another version by now.
        Unavailable: the service does not deliver.
    """
    key = location.folder + file.path
    try:
        fetch_ranges(reader(location, key, file.version), file.size, to, advance)
    except Transient as exc:
        doing, remedy = (
            f"downloading s3://{location.bucket}/{key}",
            "what has arrived is kept: run again to go on",
        )
        raise Unavailable(doing, f"the service does not deliver ({exc})", remedy) from exc


def upload(location: S3Location, path: Path, key: str, sha256: str, advance: Advance) -> None:
    """Store a file under a key, in parts if it is large, with its digest as user metadata.

    The service checks the checksum that boto3 sends along. `advance` takes bytes since the last
    call.

    Raises:
        BadInput: bucket or credentials are refused.
        Unavailable: the service does not answer.
    """
    from boto3.s3.transfer import TransferConfig

    # boto3's other client, crt, ignores the endpoint.
    config = TransferConfig(
        multipart_threshold=2 * UPLOAD_PART,
        multipart_chunksize=UPLOAD_PART,
        max_concurrency=4,
        preferred_transfer_client="classic",
    )
    extra = {"Metadata": {SHA256: sha256}}
    with translated(f"uploading {path.name} to s3://{location.bucket}/{key}"):
        connect(location).upload_file(
            str(path), location.bucket, key, ExtraArgs=extra, Callback=advance, Config=config
        )


def get(location: S3Location, key: str) -> bytes | None:
    """Return a small object's content; None if there is nothing."""
    from botocore.exceptions import ClientError

    with translated(f"reading s3://{location.bucket}/{key}"):
        try:
            with connect(location).get_object(Bucket=location.bucket, Key=key)["Body"] as body:
                content: bytes = body.read()
                return content
        except ClientError as exc:
            if _code(exc) == "NoSuchKey":
                return None
            raise


def put(location: S3Location, key: str, content: bytes) -> None:
    """Store a small object."""
    with translated(f"writing s3://{location.bucket}/{key}"):
        connect(location).put_object(Bucket=location.bucket, Key=key, Body=content)


def make_bucket(location: S3Location) -> None:
    """Make the bucket, unless it is there.

    Raises:
        BadInput: the service refuses.
        Unavailable: it does not answer.
    """
    from botocore.exceptions import ClientError

    with translated(f"making the bucket {location.bucket}"):
        try:
            connect(location).create_bucket(Bucket=location.bucket)
        except ClientError as exc:
            if _code(exc) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def delete(location: S3Location, paths: Sequence[str]) -> None:
    """Remove objects below the prefix; those that are gone already are no fault."""
    client = connect(location)
    with translated(f"removing from {location.uri}"):
        for start in range(0, len(paths), MOST_AT_ONCE):
            keys: list[ObjectIdentifierTypeDef] = [
                {"Key": location.folder + path} for path in paths[start : start + MOST_AT_ONCE]
            ]
            answer = client.delete_objects(
                Bucket=location.bucket, Delete={"Objects": keys, "Quiet": True}
            )
            for failed in answer.get("Errors", []):
                wrong = f"{failed.get('Code')}: {failed.get('Message', '')}"
                raise BadInput(f"removing {failed.get('Key')} from {location.uri}", wrong)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise errors of boto3 as ours."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as exc:
        raise _from_answer(doing, exc) from exc
    except Boto3Error as exc:
        # upload_file wraps an answer of the service in its own error, without `raise … from`.
        cause = exc.__context__
        raise (
            _from_answer(doing, cause) if isinstance(cause, ClientError) else _from_boto(doing, exc)
        ) from exc
    except BotoCoreError as exc:
        raise _from_boto(doing, exc) from exc


def _code(exc: "ClientError") -> str:
    return exc.response.get("Error", {}).get("Code", "")


def _from_answer(doing: str, exc: "ClientError") -> WeighbridgeError:
    code, status = _code(exc), exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in MISSING:
        wrong = "there is no such bucket" if code == "NoSuchBucket" else "it is not there"
        return BadInput(doing, wrong, "check bucket and prefix")
    if code in REFUSED:
        return BadInput(
            doing,
            f"the service refuses access ({code})",
            "check the AWS_* variables or the profile",
        )
    if code == "RequestTimeTooSkewed":
        wrong = "this machine's clock differs from the service's by too much"
        return BadInput(doing, wrong, "set it by NTP")
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return Unavailable(doing, f"the service answers {code} ({status})", "run again later")
    return BadInput(
        doing, f"the service answers {code}: {exc.response.get('Error', {}).get('Message', '')}"
    )


def _is_configuration(exc: Exception) -> bool:
    from botocore import exceptions

    return isinstance(
        exc,
        exceptions.NoCredentialsError
        | exceptions.PartialCredentialsError
        | exceptions.CredentialRetrievalError
        | exceptions.ProfileNotFound
        | exceptions.ParamValidationError
        | exceptions.NoRegionError,
    )


def _from_boto(doing: str, exc: Exception) -> WeighbridgeError:
    wrong = one_line(exc)
    if _is_configuration(exc):
        return BadInput(
            doing, wrong, "check the bucket's name, the profile and the AWS_* variables"
        )
    return Unavailable(doing, wrong, "check the network and the endpoint, then run again")
