"""Files that are replaced as a whole: nobody ever reads half of one, not even after a power cut."""

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
"""How a scratch file is opened."""


def read_json_lines(path: Path) -> list[Any]:
    """Return the values in a file that holds one JSON text a line.

    Raises:
        ValueError: a line is none.
    """
    # Not `splitlines`: it cuts at U+2028 and U+0085 too, which stand in JSON as they are.
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def replace_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Have `path` hold `text` in UTF-8; it is on the disk when this returns."""
    replace_bytes(path, text.encode(), mode)


def replace_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Have `path` hold `content`; it is on the disk when this returns."""
    with replacing(path, mode) as stream:
        stream.write(content)


def replace_with_copy(path: Path, source: Path, mode: int = 0o644) -> None:
    """Have `path` hold what `source` holds; it is on the disk when this returns."""
    with source.open("rb") as reading, replacing(path, mode) as writing:
        shutil.copyfileobj(reading, writing)


def made_once(path: Path, fresh: str, mode: int = 0o644) -> str:
    """Return what `path` holds; where it is not there, it is made of `fresh`.

    Of several that make it at once, all get what the first one wrote.
    """
    if not path.exists():
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        replace_text(scratch, fresh, mode)
        try:
            with suppress(FileExistsError):
                os.link(scratch, path)
        finally:
            scratch.unlink()
    return path.read_text()


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Give a stream; what is written to it becomes `path` when the block ends without an error."""
    # Named by process and thread, so that two who write at once do not share a scratch file.
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    # Made with its mode: a secret whose rights were narrowed later could be read until then.
    try:
        descriptor = os.open(scratch, NEW, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, NEW, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            # Before the rename: else a power cut may leave the new name with none of the content.
            os.fsync(stream.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
