"""The list of files of a made folder, by which anybody can tell that nothing in it has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

NAME: Final = "MANIFEST.json"


class Damaged(Exception):
    """A folder does not hold what its manifest says."""


def write(folder: Path, facts: dict[str, int | float | str]) -> None:
    """Record `facts` about the making, and the sha256 of every file in `folder`."""
    text = json.dumps({**facts, "files": _digests(folder)}, indent=2)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def verify(folder: Path) -> None:
    """Raise Damaged unless `folder` holds exactly the files of its manifest, byte for byte."""
    try:
        expected = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder}: {NAME} cannot be read ({error})") from error
    found = _digests(folder)
    names = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if names:
        raise Damaged(f"{folder}: changed, missing or unknown: {', '.join(names)}")


def _digests(folder: Path) -> dict[str, str]:
    """Path inside `folder` -> sha256, of every file but the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = ((path.relative_to(folder).as_posix(), path) for path in files)
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names if name != NAME
    }
