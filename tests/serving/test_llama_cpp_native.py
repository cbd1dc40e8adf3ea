"""llama.cpp's pinned sources and native programs: whole or not at all, from the index the machine
is set up for.
"""

import hashlib
import io
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stand_ins.http_server import server_of_files
from weighbridge.core.errors import Unavailable
from weighbridge.core.progress import Step, listen
from weighbridge.core.settings import Settings
from weighbridge.serving import llama_cpp_native as native

PROGRAM = "#include <cstdio>\nint main() { std::puts(NAME); }\n"
needs_build_tools = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")


def make_sdist(folder: Path) -> Path:
    """A small archive laid out like llama-cpp-python's; its llama.cpp builds five programs that
    print their names.
    """
    top = f"llama_cpp_python-{native.VERSION}"
    targets = "".join(
        f"add_executable({name} main.cpp)\n"
        f'target_compile_definitions({name} PRIVATE NAME="{name}")\n'
        for name in native.TOOLS
    )
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: {native.VERSION}\n",
        "llama_cpp/llama.py": "",
        "vendor/llama.cpp/CMakeLists.txt": "cmake_minimum_required(VERSION 3.14)\n"
        "project(tiny CXX)\n"
        f"set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${{CMAKE_BINARY_DIR}}/bin)\n{targets}",
        "vendor/llama.cpp/main.cpp": PROGRAM,
        "vendor/llama.cpp/convert_hf_to_gguf.py": "",
        "vendor/llama.cpp/models/vocab.gguf": "large",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pinned archive in a folder that is all there is in the world."""
    path = make_sdist(tmp_path / "found")
    monkeypatch.setattr(native, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("UV_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    return path


@pytest.fixture
def served(sdist: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same archive behind HTTP."""
    with server_of_files(sdist.parent) as server:
        monkeypatch.setenv("UV_FIND_LINKS", f"{server.url}/")
        yield f"{server.url}/"


@pytest.mark.usefixtures("sdist")
def test_only_what_converter_and_build_need_is_unpacked(tmp_path: Path) -> None:
    tree = native.source(tmp_path / "cache")
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert names == {"CMakeLists.txt", "main.cpp", "convert_hf_to_gguf.py"}


@pytest.mark.usefixtures("served")
def test_sources_come_over_http_with_progress(tmp_path: Path) -> None:
    steps: list[Step] = []
    with listen(steps.append):
        assert (native.source(tmp_path / "cache") / "convert_hf_to_gguf.py").exists()
    assert steps[-1].done > 0


def test_sources_once_fetched_need_no_index(tmp_path: Path, sdist: Path) -> None:
    first = native.source(tmp_path / "cache")
    sdist.unlink()
    assert native.source(tmp_path / "cache") == first


def test_other_bytes_under_the_pinned_version_are_refused(
    tmp_path: Path, sdist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "SHA256", "0" * 64)
    with pytest.raises(Unavailable, match="sha256"):
        native.source(tmp_path / "cache")
    assert not (tmp_path / "cache" / "llama.cpp" / native.VERSION).exists()
    assert not list((tmp_path / "cache").rglob("*.tar.gz"))


def test_an_index_without_the_version_is_one_clear_line(tmp_path: Path, sdist: Path) -> None:
    sdist.unlink()
    with pytest.raises(
        Unavailable, match=r"fetching llama\.cpp's sources.*llama-cpp-python"
    ) as caught:
        native.source(tmp_path / "cache")
    assert "\n" not in str(caught.value)


@needs_build_tools
@pytest.mark.usefixtures("sdist")
def test_programs_are_built_whole_with_progress(tmp_path: Path) -> None:
    cache, steps = tmp_path / "cache", list[Step]()
    with listen(steps.append):
        folder = native.build(cache)
    assert sorted(path.name for path in folder.iterdir()) == sorted(native.TOOLS)
    assert [step.done for step in steps if step.what == "building llama.cpp"][-1] == 1.0
    assert not list((cache / "llama.cpp").glob("*.build"))
    assert native.tool("llama-quantize", cache) == folder / "llama-quantize"


@needs_build_tools
def test_a_failed_build_says_why_and_leaves_no_programs(tmp_path: Path, sdist: Path) -> None:
    cache = tmp_path / "cache"
    main = native.source(cache) / "main.cpp"
    main.write_text("int main() { return missing; }\n")
    with pytest.raises(Unavailable, match=r"building llama\.cpp:.*missing") as caught:
        native.build(cache)
    assert "\n" not in str(caught.value)
    assert native.tool("llama-quantize", cache) is None or "cache" not in str(
        native.tool("llama-quantize", cache)
    )
    main.write_text(PROGRAM)
    assert native.build(cache).exists()


@pytest.mark.usefixtures("sdist")
def test_without_a_compiler_the_line_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler.*apt-get install g\+\+"):
        native.build(tmp_path / "cache")


def test_a_program_on_the_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.tool("llama-quantize-x", tmp_path / "cache") is None
    program = tmp_path / "llama-quantize-x"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert native.tool("llama-quantize-x", tmp_path / "cache") == program
    assert "PATH" in native.tool_version(program)


def test_credentials_of_the_index_go_with_the_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX", "mine=https://me:s%40cret@index.invalid/simple")
    auth = native._credentials("https://index.invalid/files/a.tar.gz")
    assert auth._auth_header == "Basic bWU6c0BjcmV0"


def test_credentials_stay_with_their_own_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UV_INDEX", "https://me:secret@index.invalid/simple")
    assert native._credentials("https://elsewhere.invalid/a.tar.gz") is None


@pytest.mark.slow
def test_the_pinned_sources_are_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert (native.source(Settings().cache) / "convert_hf_to_gguf.py").exists()


def test_what_came_with_a_bento_is_used_before_what_is_on_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "TRAVELLING", tmp_path)
    program = tmp_path / "llama-server"
    program.touch()
    assert native.tool("llama-server", tmp_path / "cache") == program
