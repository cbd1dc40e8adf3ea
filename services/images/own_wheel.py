"""Our own package as a wheel, made of what is running: a checkout or an installation.

The same files give the same bytes. No build backend is asked: an installation has none.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import weighbridge
from weighbridge.core.errors import Unavailable
from weighbridge.core.paths import CHECKOUT, PACKAGE

_DATE: Final = (1980, 1, 1, 0, 0, 0)
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: weighbridge\nRoot-Is-Purelib: true\nTag: {tag}\n"
_TAG: Final = "py3-none-any"
_BESIDE: Final = ("prefect.yaml", "locks/control.lock")
"""Data that a checkout has beside the packages, and a wheel inside `weighbridge`."""


def file_name() -> str:
    """Return what the wheel is called."""
    return f"weighbridge-{_distribution().version}-{_TAG}.whl"


@cache
def content() -> bytes:
    """Return the wheel; what is running does not change meanwhile.

    Raises: Unavailable: this is no installation, so nobody knows its version and its commands.
    """
    distribution = _distribution()
    folder = f"weighbridge-{distribution.version}.dist-info"
    files = dict(_package_files())
    for name in ("METADATA", "entry_points.txt"):
        files[f"{folder}/{name}"] = (distribution.read_text(name) or "").encode()
    files[f"{folder}/WHEEL"] = _WHEEL.format(tag=_TAG).encode()
    record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
    files[f"{folder}/RECORD"] = "\n".join([*record, f"{folder}/RECORD,,", ""]).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def _distribution() -> metadata.Distribution:
    try:
        return metadata.distribution("weighbridge")
    except metadata.PackageNotFoundError as exc:
        remedy = "install it: pip install -e ."
        raise Unavailable("packing our own code", "it is not installed", remedy) from exc


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Give our files as they lie in site-packages, in order."""
    # In a checkout this folder holds links to our packages, which pathlib does not walk into.
    root = Path(weighbridge.__file__).parent
    found = {
        f"weighbridge/{entry.name}/{path.relative_to(entry.resolve()).as_posix()}": path
        for entry in root.iterdir()
        if entry.is_dir() and entry.name != "__pycache__"
        for path in entry.resolve().rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found |= {f"weighbridge/{path.name}": path for path in root.iterdir() if path.is_file()}
    if CHECKOUT:
        found |= {f"weighbridge/{name}": PACKAGE / name for name in _BESIDE}
    for name in sorted(found):
        yield name, found[name].read_bytes()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
