"""llama.cpp from pinned sources: its converter, and its own programs built for this processor.

The sources are those that one release of llama-cpp-python carries, fetched from the package index
that the machine is set up to use, so that nothing but that index has to be reachable.

::

    llama.cpp/<version>/            the sources
    llama.cpp/<version>-<machine>/  the programs, static, one folder per kind of processor
"""

import hashlib
import logging
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as remember
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from weighbridge.core.environments import ensure, one_at_a_time, run_uv
from weighbridge.core.errors import Unavailable
from weighbridge.core.formatting import one_line
from weighbridge.core.machine import cores
from weighbridge.core.processes import Finished, run
from weighbridge.core.progress import track
from weighbridge.core.uv_settings import uv_variables

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
COMMIT = "0c1e57098"
"""Commit of ggml-org/llama.cpp that this release vendors, by its changelog."""

TOOLS = ("llama-server", "llama-quantize", "llama-imatrix", "llama-bench", "llama-perplexity")
INSTALL = "weighbridge engines install llama_cpp --native"
LOCK = Path(__file__).with_suffix(".lock")
TRAVELLING = Path(__file__).resolve().parents[2] / "bin"
"""Where a Bento carries the programs it was weighed with; a checkout has no such folder."""

_NOT_NEEDED = frozenset({"docs", "media", "models", "benches", "tests"})


def _without_amx() -> list[str]:
    """Return options that leave out AMX: compiled by GCC 12, llama-server's AMX kernels end in a
    segmentation fault on every quantized model.
    """
    if platform.machine() != "x86_64":
        return []
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return [f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]


_CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    *_without_amx(),
    # With these off it builds without a network.
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
    # Else it asks git, which may answer for whatever repository the cache happens to lie in.
    "-DLLAMA_BUILD_NUMBER=0",
    f"-DLLAMA_BUILD_COMMIT={COMMIT}",
)

logger = logging.getLogger(__name__)


def is_fetched(cache: Path) -> bool:
    """Whether `source` needs no network."""
    return (cache / "llama.cpp" / VERSION).exists()


def source(cache: Path) -> Path:
    """Return llama.cpp's source tree, fetched if it is not there; whole or not at all.

    Raises:
        Unavailable: the package index does not answer, or has other bytes under this version.
    """
    folder = cache / "llama.cpp" / VERSION
    if folder.exists():
        return folder
    doing = f"fetching llama.cpp's sources ({PACKAGE} {VERSION})"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder, doing):
            if not folder.exists():
                _fetch(folder, doing)
    except OSError as exc:
        raise Unavailable(
            doing, str(exc), f"make room or give rights at {cache}, then run again"
        ) from exc
    return folder


def tool(name: str, cache: Path) -> Path | None:
    """Return one of llama.cpp's programs: as it came with this Bento, as built by `build`, as it is
    on the PATH, or None.
    """
    for program in (TRAVELLING / name, _programs(cache) / name):
        if program.exists():
            return program
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def tool_version(program: Path) -> str:
    """Return what a program of llama.cpp is: our pinned one by release and commit, another one by
    its path.
    """
    if program.parent.name.startswith(f"{VERSION}-"):
        return f"{PACKAGE} {VERSION} (llama.cpp {COMMIT}), native"
    return f"{program} (found on the PATH)"


def build(cache: Path) -> Path:
    """Build llama.cpp's programs for this processor and return their folder; whole or not at all.

    About ten minutes of one core. An interrupted build goes on where it was.

    Raises:
        Unavailable: no C++ compiler, or the build fails; the message ends with the compiler's own.
    """
    programs = _programs(cache)
    if programs.exists():
        return programs
    doing = "building llama.cpp"
    compiler = _compiler(doing)
    tree = source(cache)
    with one_at_a_time(programs, doing):
        if not programs.exists():
            started = time.monotonic()
            _compile(tree, programs, compiler, cache, doing)
            logger.info("llama.cpp built in %.0f s: %s", time.monotonic() - started, programs)
    return programs


def _programs(cache: Path) -> Path:
    return cache / "llama.cpp" / f"{VERSION}-{_machine()}"


@remember
def _machine() -> str:
    """Return the architecture and a digest of the processor's features and our options: a build
    runs on its own kind of processor alone.
    """
    features = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        # `flags` on x86, `Features` on ARM.
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        features = " ".join(sorted(flags[1].split())) if flags else features
    identity = " ".join([features, *_CMAKE_OPTIONS])
    return f"{platform.machine()}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _fetch(folder: Path, doing: str) -> None:
    # In the same folder: a rename does not reach another file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        archive = Path(scratch) / "sdist.tar.gz"
        started = time.monotonic()
        _download(_locate(doing), archive, doing)
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != SHA256:
            raise Unavailable(
                doing,
                f"the file has sha256 {digest}, not {SHA256}",
                "check the package index in use",
            )
        tree = Path(scratch) / "tree"
        _unpack(archive, tree)
        tree.rename(folder)
        logger.info("llama.cpp's sources fetched in %.0f s: %s", time.monotonic() - started, folder)


def _locate(doing: str) -> dict[str, Any]:
    """Return where the user's package index keeps the archive: uv resolves it without downloading
    or building it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        requirement, lock = Path(scratch) / "llama_cpp.in", Path(scratch) / "pylock.toml"
        requirement.write_text(f"{PACKAGE}=={VERSION}\n")
        options = [
            "--no-deps",
            # The sdist: a wheel brings no sources of llama.cpp.
            "--no-binary",
            PACKAGE,
            "--format",
            "pylock.toml",
            "--python",
            sys.executable,
        ]
        run_uv(doing, "pip", "compile", *options, "--output-file", str(lock), str(requirement))
        sdist: dict[str, Any] = tomllib.loads(lock.read_text())["packages"][0]["sdist"]
        if path := sdist.get("path"):
            sdist["url"] = (Path(scratch) / path).resolve().as_uri()
    return sdist


def _download(sdist: dict[str, Any], to: Path, doing: str) -> None:
    url = str(sdist["url"])
    if url.startswith("file:"):
        shutil.copyfile(unquote(urlsplit(url).path), to)
        return
    import httpx

    try:
        with (
            track(doing, sdist.get("size"), "B") as update,
            httpx.stream(
                "GET",
                url,
                auth=_credentials(url),
                follow_redirects=True,
                timeout=60,
                verify=_trust(),
            ) as response,
            to.open("wb") as stream,
        ):
            response.raise_for_status()
            for chunk in response.iter_bytes(1 << 20):
                stream.write(chunk)
                update(stream.tell())
    except httpx.HTTPError as exc:
        raise Unavailable(
            doing, f"{urlsplit(url).hostname} says: {exc}", "check the network, then run again"
        ) from exc


def _trust() -> Any:
    """Return the machine's own certificate authorities where it names some, as uv and pip use
    them.
    """
    import ssl

    file = {**os.environ, **uv_variables()}.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def _credentials(url: str) -> Any:
    """Return user and password of the index the file comes from: out of its URL in uv's settings,
    else from ~/.netrc.
    """
    import httpx

    settings = {**os.environ, **uv_variables()}
    indexes = " ".join(
        settings.get(name, "")
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
    )
    for entry in indexes.split():
        # An index may be written as NAME=URL.
        index = urlsplit(entry.partition("=")[2] if re.match(r"[\w-]+=", entry) else entry)
        if index.username and index.hostname == urlsplit(url).hostname:
            return httpx.BasicAuth(unquote(index.username), unquote(index.password or ""))
    return httpx.NetRCAuth() if (Path.home() / ".netrc").exists() else None


def _unpack(archive: Path, to: Path) -> None:
    """Unpack `vendor/llama.cpp` without the folders that neither converter nor build reads."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            inside = parts[2:]
            if parts[:2] != ("vendor", "llama.cpp") or not inside or not member.isfile():
                continue
            # An archive may name files outside of itself.
            if ".." in inside or inside[0] in _NOT_NEEDED or inside[0].startswith("."):
                continue
            target = to.joinpath(*inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                content = tar.extractfile(member)
                assert content is not None, "a file, as asked above"
                shutil.copyfileobj(content, stream)


def _compiler(doing: str) -> str:
    named = os.environ.get("CXX", "")
    for name in (named, "c++", "g++", "clang++"):
        if name and shutil.which(name):
            return name
    remedy = (
        "install one (Debian, Ubuntu: `apt-get install g++`; Fedora: `dnf install gcc-c++`), "
        "then run it again"
    )
    raise Unavailable(doing, "there is no C++ compiler on the PATH", remedy)


def _compile(tree: Path, programs: Path, compiler: str, cache: Path, doing: str) -> None:
    work = programs.with_name(f"{programs.name}.build")
    cmake, ninja = (_build_program(name, cache) for name in ("cmake", "ninja"))
    options = [*_CMAKE_OPTIONS, f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    configured = run("cmake", [cmake, "-G", "Ninja", "-S", tree, "-B", work, *options])
    _require(configured, doing)
    with _ninja_progress(doing) as on_line:
        # CMake's own variable, for whoever wants to keep cores for other work.
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(cores())
        _require(
            run(
                "ninja",
                [ninja, "-C", work, "-j", jobs, *TOOLS],
                # The form that `_ninja_progress` reads.
                env={"NINJA_STATUS": "[%f/%t] "},
                on_line=on_line,
            ),
            doing,
        )
    with tempfile.TemporaryDirectory(dir=programs.parent, prefix=".built-") as scratch:
        complete = Path(scratch) / "bin"
        complete.mkdir()
        for name in TOOLS:
            shutil.copy2(work / "bin" / name, complete / name)
        complete.rename(programs)
    shutil.rmtree(work, ignore_errors=True)


def _build_program(name: str, cache: Path) -> Path:
    """Return cmake or ninja: the machine's own, else out of a small locked environment."""
    on_path = shutil.which(name)
    return Path(on_path) if on_path else ensure(LOCK, cache).bin(name)


@contextmanager
def _ninja_progress(doing: str) -> Iterator[Any]:
    with track(doing, 1) as update:

        def on_line(line: str) -> None:
            if steps := re.match(r"\[(\d+)/(\d+)\]", line):
                update(int(steps[1]) / int(steps[2]))

        yield on_line


def _require(finished: Finished, doing: str) -> None:
    """Raise what the compiler says where a step of the build failed."""
    if finished.status == 0:
        return
    lines = finished.output.splitlines()
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    message = one_line(" ".join(errors[:3])) or finished.tail()
    raise Unavailable(doing, message[:500], "mend that, then run it again: it goes on where it was")
