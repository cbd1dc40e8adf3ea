"""What an image is to hold, and the name that says so: nothing is built here.

An image's tag is its version and the digest of everything that goes into it, the lock first of all:
what has not changed bears a name that is there already.
"""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from weighbridge.core import plugins
from weighbridge.core.environments import locks_of
from weighbridge.core.errors import BadInput
from weighbridge.core.files import replace_bytes, replace_text
from weighbridge.core.paths import PACKAGE
from weighbridge.core.store import link_or_copy, sha256_of
from weighbridge.core.uv_settings import INDEX_VARIABLES, find_links, uv_variables
from weighbridge.core.versions import own_version
from weighbridge.services.images import own_wheel
from weighbridge.services.images.containerfile import (
    CERTIFICATES_SECRET,
    SECRETS,
    ImageContents,
    containerfile,
)
from weighbridge.serving.engines.base import engine_class

CONTROL: Final = "control"
BASE: Final = "docker.io/library/python:3.11-slim-bookworm"
"""What is pulled and then named by its digest, where nobody names a base."""
CONTROL_LOCK: Final = PACKAGE / "locks" / "control.lock"
LAUNCHER: Final = PACKAGE / "serving" / "bento_container.py"
LOCK_LABEL: Final = "io.weighbridge.lock.sha256"
_DIGEST: Final = re.compile(r"@(sha256:[0-9a-f]{64})$")
_ENTRY: Final = r"^{name}==.*(?:\n .*)*"
"""A package in a lock, with its hashes."""
_PINNED: Final = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Image:
    """An image as it is to be built."""

    name: str
    reference: str
    """Repository and tag."""
    text: str
    """Its Containerfile."""
    files: Mapping[str, Path | bytes]
    """What the build reads, by path in its context."""

    def write_context(self, folder: Path) -> None:
        """Write the build's context and its Containerfile into an empty folder."""
        for name, content in self.files.items():
            if isinstance(content, bytes):
                replace_bytes(folder / name, content)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(content, folder / name)
        replace_text(folder / "Containerfile", self.text)


def image_names() -> list[str]:
    """Return the names of all images: the control plane's, and one for each engine."""
    engines = (name for name in plugins.names("engine") if engine_class(name).locks)
    return [CONTROL, *engines]


def image_of(
    name: str,
    base: str,
    repository: str = "",
    device: str | None = None,
    packages: Sequence[str] = (),
) -> Image:
    """Return the image of the control plane, or of an engine.

    Args:
        name: `control`, or an engine's name.
        base: Image with Python that both stages begin with.
        repository: What the name begins with, such as `registry.example.org/team`.
        device: Which of an engine's locks; None: CUDA's where it has one.
        packages: Further packages of Debian.

    Raises:
        BadInput: there is no such engine, or it has no lock for the device.
    """
    lock, needed = _lock_of(name, device)
    locks = locks_of(lock)
    files = _context_files(name, locks)
    contents = ImageContents(
        name=name,
        base=base,
        locks=[path.name for path in locks],
        labels=_labels(name, base, locks),
        wheels=any(path.startswith("wheels/") for path in files),
        own_wheel=own_wheel.file_name() if name == CONTROL else "",
        launcher="" if name == CONTROL else LAUNCHER.name,
        system_packages=list(dict.fromkeys([*needed, *packages])),
    )
    text = containerfile(contents)
    tag = f"{own_version()}-{_digest(text, files)[:12]}"
    prefix = f"{repository.rstrip('/')}/" if repository else ""
    # Names of images are lower case, and take no two signs in a row.
    title = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return Image(name, f"{prefix}weighbridge-{title}:{tag}", text, files)


def index_settings() -> str:
    """Return shell lines by which uv and pip look for packages where they do on this machine.

    They may hold a password.
    """
    variables = {**uv_variables()}
    # With the names and passwords of indexes, and how to choose among them.
    variables |= {
        name: value
        for name, value in os.environ.items()
        if name in INDEX_VARIABLES or name.startswith("UV_INDEX")
    }
    # Folders of this machine: what is wanted of them is in the context.
    variables.pop("UV_FIND_LINKS", None)
    variables.pop("SSL_CERT_FILE", None)
    if certificates():
        inside = f"{SECRETS}/{CERTIFICATES_SECRET}"
        variables |= {"SSL_CERT_FILE": inside, "PIP_CERT": inside}
    for_pip = {
        "PIP_INDEX_URL": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
        "PIP_EXTRA_INDEX_URL": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    }
    for pip, of_uv in for_pip.items():
        if urls := [variables[name] for name in of_uv if name in variables]:
            variables[pip] = urls[0]
    return "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())
    )


def certificates() -> Path | None:
    """Return the file of certificates that uv is told to trust on this machine, if it is any."""
    name = {**uv_variables(), **os.environ}.get("SSL_CERT_FILE", "")
    return Path(name) if name and Path(name).is_file() else None


def _lock_of(name: str, device: str | None) -> tuple[Path, tuple[str, ...]]:
    """Return the lock of an image, and the packages of Debian that it needs."""
    if name == CONTROL:
        # The gateway of the target `local`, and what engines need that are weighed in it.
        engines = (engine_class(engine).system_packages for engine in image_names()[1:])
        small = {package for packages in engines for package in packages if package != "g++"}
        return CONTROL_LOCK, ("haproxy", *sorted(small))
    if name not in plugins.names("engine"):
        remedy = plugins.suggestion(name, image_names())
        raise BadInput(f"planning the image of '{name}'", "there is no such engine", remedy)
    engine = engine_class(name)
    chosen = device or ("cuda" if "cuda" in engine.locks else next(iter(engine.locks), ""))
    if chosen not in engine.locks:
        wrong, known = f"it has no environment for {chosen}", ", ".join(engine.locks) or "none"
        raise BadInput(f"planning the image of {name}", wrong, f"known: {known}")
    return engine.locks[chosen], engine.system_packages


def _context_files(name: str, locks: list[Path]) -> dict[str, Path | bytes]:
    files: dict[str, Path | bytes] = {f"locks/{lock.name}": lock for lock in locks}
    # uv itself, by the hashes of our own lock.
    [entry] = re.findall(_ENTRY.format(name="uv"), CONTROL_LOCK.read_text(), re.MULTILINE)
    files["locks/uv.lock"] = f"{entry}\n".encode()
    files |= {f"wheels/{wheel.name}": wheel for wheel in _local_wheels(locks)}
    if name == CONTROL:
        return files | {own_wheel.file_name(): own_wheel.content()}
    return files | {LAUNCHER.name: LAUNCHER}


def _local_wheels(locks: list[Path]) -> Iterator[Path]:
    """Give the wheels of UV_FIND_LINKS that the locks name, and that no index may have."""
    text = "\n".join(lock.read_text() for lock in locks)
    wanted = {f"{_normal(package)}-{version}" for package, version in _PINNED.findall(text)}
    for folder in find_links():
        for wheel in sorted(folder.glob("*.whl")):
            package, version, *_ = wheel.name.split("-")
            if f"{_normal(package)}-{version}" in wanted:
                yield wheel


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "_", package).lower()


def _labels(name: str, base: str, locks: list[Path]) -> dict[str, str]:
    """Return the labels: those of OCI's specification, and the digest of the locks."""
    what = "control plane and stages" if name == CONTROL else f"serves Bentos of engine {name}"
    pinned = _DIGEST.search(base)
    content = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    return {
        "org.opencontainers.image.title": f"weighbridge-{name}",
        "org.opencontainers.image.description": f"Weighbridge: {what}",
        "org.opencontainers.image.version": own_version(),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.base.name": _DIGEST.sub("", base),
        **({"org.opencontainers.image.base.digest": pinned[1]} if pinned else {}),
        LOCK_LABEL: content,
    }


def _digest(text: str, files: Mapping[str, Path | bytes]) -> str:
    parts = {
        name: hashlib.sha256(content).hexdigest()
        if isinstance(content, bytes)
        else sha256_of(content)
        for name, content in files.items()
    }
    return hashlib.sha256(json.dumps([text, parts], sort_keys=True).encode()).hexdigest()
