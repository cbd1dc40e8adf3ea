"""Room on a disk: how much there is, the refusal of work that would not fit, the error of a full
one.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import human_size


def free_bytes(folder: Path) -> int:
    """Return how many bytes are free on the disk that holds `folder`, or will once it is made."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def require_room(needed: int, purpose: str, folder: Path, doing: str) -> None:
    """Raise Unavailable where fewer than `needed` bytes are free on the disk of `folder`.

    Args:
        needed: Bytes, estimated from above.
        purpose: What takes them: `the merged model`.
        folder: Where they will lie.
        doing: What is being done, for the message.
    """
    free = free_bytes(folder)
    if needed > free:
        wrong = f"{purpose} takes up to {human_size(needed)} of disk, {human_size(free)} are free"
        remedy = (
            f"make room on the disk of {folder}, or set WEIGHBRIDGE_HOME and WEIGHBRIDGE_CACHE "
            "to folders on another"
        )
        raise Unavailable(doing, wrong, remedy)


def is_full(exc: OSError) -> bool:
    """Whether an error says that nothing can be written: no room, no quota left, read-only."""
    return exc.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextlib.contextmanager
def recording(path: Path) -> Iterator[None]:
    """Raise Unavailable where the block cannot write: its disk is full, read-only or gone."""
    try:
        yield
    except OSError as exc:
        wrong = exc.strerror or str(exc)
        remedy = f"make room on the disk of {path.parent}"
        raise Unavailable(f"writing {path}", wrong, remedy) from exc
