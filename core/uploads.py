"""Many files into a bucket at once: those that are not there yet, each with its digest."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from weighbridge.core import s3
from weighbridge.core.artifact import File
from weighbridge.core.progress import Advance, meter

FILES_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Upload:
    """A file on this machine, and the key that it is to have below the location's prefix."""

    file: File
    source: Path
    key: str


def send_missing(uploads: Sequence[Upload], to: s3.S3Location, doing: str) -> list[Upload]:
    """Send the files whose bytes the bucket does not hold under their key yet; return those.

    Raises:
        BadInput: the bucket does not exist, or the credentials are refused.
        Unavailable: the service does not answer.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        present = list(pool.map(partial(_is_there, to), uploads))
    missing = [upload for upload, there in zip(uploads, present, strict=True) if not there]
    _send_all(missing, to, doing)
    return missing


def _is_there(to: s3.S3Location, upload: Upload) -> bool:
    stored = s3.head(to, to.folder + upload.key)
    # By our own metadata, not by ETag: of an upload in parts, that is no digest of the content.
    return stored is not None and (stored.size, stored.sha256) == (
        upload.file.size,
        upload.file.sha256,
    )


def _send_all(uploads: Sequence[Upload], to: s3.S3Location, doing: str) -> None:
    total = sum(upload.file.size for upload in uploads)
    with meter(doing, total) as advance, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        try:
            list(pool.map(partial(_send, to, advance), uploads))
        # On Ctrl-C, too: leaving the pool would first send every file that still waits.
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _send(to: s3.S3Location, advance: Advance, upload: Upload) -> None:
    s3.upload(to, upload.source, to.folder + upload.key, upload.file.sha256, advance)
