"""Source `s3`: a prefix of a bucket, at Amazon or any service that speaks S3."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from weighbridge.core import s3
from weighbridge.core.remote_file import RemoteFile
from weighbridge.tasks.sources.base import Listing, SourceArgs


class S3Args(s3.S3Location, SourceArgs):
    """A prefix of a bucket. Credentials come from boto3's own chain, never from here."""

    kind: Literal["s3"] = "s3"


class S3Source:
    """Contents are pinned by ETag, and verified where an object carries its sha256, as those that
    we push do.
    """

    Args: ClassVar[type[SourceArgs]] = S3Args

    def parse(self, uri: str) -> S3Args:
        bucket, prefix = s3.split(uri)
        return S3Args(bucket=bucket, prefix=prefix)

    def list_files(self, args: S3Args) -> Listing:
        return Listing(files=s3.list_objects(args), origin={"uri": args.uri})

    def digest(self, args: S3Args, file: RemoteFile) -> RemoteFile:
        """Return the file with the digest in its metadata; without any, the ETag says which bytes
        are meant.
        """
        stored = s3.head(args, args.folder + file.path)
        # The object was replaced after it was listed: its digest is of other bytes.
        if not stored or stored.version != file.version:
            return file
        return file.model_copy(update={"sha256": stored.sha256})

    def fetch(
        self,
        args: S3Args,
        listing: Listing,
        file: RemoteFile,
        to: Path,
        advance: Callable[[int], None],
    ) -> None:
        s3.download(args, file, to, advance)
