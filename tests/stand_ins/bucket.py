"""A bucket that is a dictionary: for tests of what travels through one, not of S3 itself."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from weighbridge.core import s3
from weighbridge.core.progress import Advance
from weighbridge.core.remote_file import RemoteFile


class Bucket:
    """Takes the place of what `weighbridge.core.s3` does over the network."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def take_place(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("get", "put", "head", "upload", "download", "delete"):
            patch.setattr(s3, name, getattr(self, name))

    def get(self, _: s3.S3Location, key: str) -> bytes | None:
        return self.objects.get(key)

    def put(self, _: s3.S3Location, key: str, content: bytes) -> None:
        self.objects[key] = content

    def head(self, _: s3.S3Location, key: str) -> RemoteFile | None:
        content = self.objects.get(key)
        if content is None:
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        return RemoteFile(path=key, size=len(content), sha256=sha256)

    def upload(self, _: s3.S3Location, path: Path, key: str, sha256: str, advance: Advance) -> None:
        self.objects[key] = path.read_bytes()
        advance(path.stat().st_size)

    def download(
        self, location: s3.S3Location, file: RemoteFile, to: Path, advance: Advance
    ) -> None:
        to.write_bytes(self.objects[location.folder + file.path])
        advance(file.size)

    def delete(self, location: s3.S3Location, paths: Sequence[str]) -> None:
        for path in paths:
            self.objects.pop(location.folder + path, None)
