"""Folders that their owner alone can look into: the installation's state, and BentoML's store."""

import contextlib
import os
from pathlib import Path

_OTHERS = 0o077


def make_private(folder: Path) -> None:
    """Have a folder be there, and it and what lies directly in it be its owner's alone.

    What lies deeper cannot be reached by others then. Somebody else's folder is left as it is.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (folder, *folder.iterdir()):
        # A file that has just been replaced, or that is somebody else's.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            _take_from_others(path)


def _take_from_others(path: Path) -> None:
    status = path.lstat()
    is_link = path.is_symlink()
    if status.st_mode & _OTHERS and status.st_uid == os.getuid() and not is_link:
        path.chmod(status.st_mode & 0o7777 & ~_OTHERS)
