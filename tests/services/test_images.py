"""Images: what a Containerfile holds, what names it, and what is said where none can be built."""

import json
import os
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from weighbridge.cli.main import cli
from weighbridge.core.container_layout import USER
from weighbridge.core.errors import BadInput, Unavailable
from weighbridge.services.images import own_wheel
from weighbridge.services.images.build import build_image
from weighbridge.services.images.builders import BUILDERS, find_builder
from weighbridge.services.images.image import (
    BASE,
    CONTROL,
    LOCK_LABEL,
    image_names,
    image_of,
    index_settings,
)

PINNED = f"registry.example/python@sha256:{'0' * 64}"
FAKE_BUILDER = """#!{python}
import json, os, shutil, sys
folder = os.path.dirname(os.path.abspath(__file__))
with open(folder + "/calls", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
if sys.argv[1:3] == ["image", "inspect"]:
    sys.exit(not os.path.exists(folder + "/built"))
if sys.argv[1] == "build":
    [secret] = [word for word in sys.argv if word.startswith("id=index,src=")]
    shutil.copy(secret.partition("src=")[2], folder + "/index")
    shutil.copytree(sys.argv[-1], folder + "/context", dirs_exist_ok=True)
    open(folder + "/built", "w").close()
if sys.argv[1] == "push":
    print("unauthorized: authentication required")
    sys.exit(1)
"""
"""A builder that keeps what it is given, and whose registry wants a login."""


@pytest.fixture
def builder_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which there is a podman, and nothing else that builds."""
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    program.write_text(FAKE_BUILDER.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return program.parent


def instructions(text: str) -> list[str]:
    """The instructions of a Containerfile, each as one line."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", image_names())
def test_every_image_is_built_from_its_lock_by_hashes_and_runs_as_a_number(name: str) -> None:
    made = image_of(name, PINNED)
    lines = instructions(made.text)
    assert lines[0] == f"ARG BASE={PINNED}"
    own = ["FROM environment AS own"] if name == CONTROL else []
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM ${BASE} AS environment",
        *own,
        "FROM ${BASE}",
    ]
    assert f"USER {USER}:{USER}" in lines
    [build] = [line for line in lines if "pip sync" in line]
    assert "--require-hashes" in build
    assert "--no-cache" in build
    for lock in re.findall(r"/build/locks/(\S+\.lock)", build):
        assert f"locks/{lock}" in made.files
    # What is in the last stage came out of the first, but for the launcher.
    last = lines[lines.index("FROM ${BASE}") :]
    copied = next(line for line in last if line.startswith("COPY"))
    assert copied.startswith("COPY --from=environment")
    assert not [line for line in last if "pip" in line]


def test_a_containerfile_is_the_same_every_time_and_on_every_day() -> None:
    texts = {image_of("llama_cpp", PINNED).text for _ in range(2)}
    assert len(texts) == 1
    assert "SOURCE_DATE_EPOCH" in texts.pop()
    assert own_wheel.content.__wrapped__() == own_wheel.content.__wrapped__()


def test_an_images_name_changes_with_what_goes_in_and_with_nothing_else(tmp_path: Path) -> None:
    first = image_of("llama_cpp", PINNED)
    assert image_of("llama_cpp", PINNED).reference == first.reference
    other_base = image_of("llama_cpp", PINNED.replace("0", "1"))
    assert other_base.reference != first.reference
    assert image_of("onnx", PINNED).reference.startswith("weighbridge-onnx:")
    assert image_of("llama_cpp", PINNED, "registry.example/team/").reference == (
        f"registry.example/team/{first.reference}"
    )


def test_a_change_of_our_own_code_changes_a_small_layer_and_no_environment() -> None:
    lines = instructions(image_of(CONTROL, PINNED).text)
    wheel = own_wheel.file_name()
    first = next(number for number, line in enumerate(lines) if wheel in line)
    assert lines.index("FROM environment AS own") < first
    environment, own = [line for line in lines if line.startswith("COPY --from=")]
    assert environment == "COPY --from=environment /opt/weighbridge /opt/weighbridge"
    assert own == "COPY --from=own /build/own /opt/weighbridge"
    [compiled] = [line for line in lines if "compileall" in line]
    assert "--compile-bytecode" not in compiled
    # By the wheel's date alone no two of these layers were the same.
    assert "rm -f /opt/weighbridge/control/lib/python3*/site-packages/weighbridge-*" in compiled


def set_apart(folder: Path, commands: Path) -> subprocess.CompletedProcess[str]:
    """Have `sh` set our own package apart as the build does, of what lies in a folder."""
    [line] = [line for line in instructions(image_of(CONTROL, PINNED).text) if "find ." in line]
    last = line.partition("; mkdir ")[2].replace("/build", f"{folder}/build")
    command = f"set -eu; mkdir {last}".replace("/opt/weighbridge", f"{folder}/opt")
    path = f"{commands}:{os.environ['PATH']}"
    return subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, env={"PATH": path}
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with our own package in the environment of an image, and another's beside it."""
    environment = tmp_path / "opt" / "control"
    packages = environment / "lib" / "python3.11" / "site-packages"
    for file in (
        packages / "weighbridge" / "cli" / "main.py",
        packages / "weighbridge-1.0.dist-info" / "RECORD",
        packages / "prefect" / "main.py",
        environment / "bin" / "weighbridge",
        environment / "bin" / "prefect",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    (environment / "bin" / "weighbridge").chmod(0o755)
    os.utime(environment / "bin" / "weighbridge", (1, 1))
    (tmp_path / "build").mkdir()
    return tmp_path


def test_what_our_own_package_adds_is_set_apart_as_it_is(installed: Path) -> None:
    done = set_apart(installed, installed)
    assert done.returncode == 0, done.stderr
    own = installed / "build" / "own"
    packages = Path("control/lib/python3.11/site-packages")
    assert {file.relative_to(own) for file in own.rglob("*") if file.is_file()} == {
        packages / "weighbridge" / "cli" / "main.py",
        packages / "weighbridge-1.0.dist-info" / "RECORD",
        Path("control/bin/weighbridge"),
    }
    script = (own / "control" / "bin" / "weighbridge").stat()
    assert (script.st_mode & 0o777, script.st_mtime) == (0o755, 1)


@pytest.mark.parametrize("program", ["find", "cp"])
def test_a_build_ends_where_setting_apart_fails(installed: Path, program: str) -> None:
    (installed / program).write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    (installed / program).chmod(0o755)
    done = set_apart(installed, installed)
    assert done.returncode == 1
    assert "no room" in done.stderr


def test_no_command_of_a_build_hides_how_another_one_ended() -> None:
    """`sh` has no pipefail everywhere."""
    for name in image_names():
        for line in instructions(image_of(name, PINNED).text):
            assert not re.search(r"[^|]\|[^|]", line), line


def test_labels_tell_base_and_lock() -> None:
    labels = dict(re.findall(r'^LABEL (\S+)="(.*)"$', image_of(CONTROL, PINNED).text, re.MULTILINE))
    assert labels["org.opencontainers.image.base.name"] == "registry.example/python"
    assert labels["org.opencontainers.image.base.digest"] == f"sha256:{'0' * 64}"
    assert re.fullmatch("[0-9a-f]{64}", labels[LOCK_LABEL])


def test_our_own_wheel_holds_what_the_published_one_does() -> None:
    with zipfile.ZipFile(BytesIO(own_wheel.content())) as wheel:
        names = wheel.namelist()
        metadata = next(name for name in names if name.endswith("/METADATA"))
        record = wheel.read(metadata.replace("METADATA", "RECORD")).decode()
    assert {"weighbridge/prefect.yaml", "weighbridge/locks/control.lock"} <= set(names)
    assert "weighbridge/cli/main.py" in names
    assert "weighbridge/serving/engines/llama_cpp.lock" in names
    assert not [name for name in names if "__pycache__" in name]
    assert record.count("\n") == len(names)


def test_a_password_of_the_index_is_a_secret_of_the_build(
    builder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://me:hunter2@index.example/simple")
    made = image_of("llama_cpp", PINNED)
    built = build_image(
        made, find_builder(None), push=False, options=["--network=host"], on_line=lambda line: None
    )
    assert not built.reused
    calls = (builder_folder / "calls").read_text()
    context = builder_folder / "context"
    written = [
        path.read_text() for path in context.rglob("*") if path.suffix != ".whl" and path.is_file()
    ]
    assert "hunter2" not in calls + "".join(written)
    assert "hunter2" in (builder_folder / "index").read_text()
    assert (context / "Containerfile").read_text() == made.text
    assert {name for name in made.files if not (context / name).exists()} == set()
    [build] = [json.loads(line) for line in calls.splitlines() if line.startswith('["build"')]
    assert "--network=host" in build
    assert build[build.index("--timestamp") + 1].isdigit()


def test_an_image_that_is_there_is_not_built_again_and_a_registry_may_want_a_login(
    builder_folder: Path,
) -> None:
    made, found = image_of("llama_cpp", PINNED, "registry.example"), find_builder("podman")
    (builder_folder / "built").touch()
    assert build_image(made, found, push=False, options=[], on_line=lambda line: None).reused
    assert '"build"' not in (builder_folder / "calls").read_text()
    with pytest.raises(BadInput, match="podman login"):
        build_image(made, found, push=True, options=[], on_line=lambda line: None)


def test_where_nothing_builds_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="docker: not on the PATH") as refused:
        find_builder(None)
    assert all(name in str(refused.value) for name in BUILDERS)
    with pytest.raises(BadInput, match="known: docker"):
        find_builder("kaniko")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["image", *arguments])


def test_a_dry_run_prints_what_would_be_built_and_asks_no_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert image_of("onnx", BASE).text in invoke("onnx", "--dry-run").output
    [listed] = json.loads(invoke("onnx", "--dry-run", "--json").output)
    assert listed["reference"] == image_of("onnx", BASE).reference
    assert isinstance(invoke("onx", "--dry-run").exception, BadInput)


def test_uv_looks_in_the_image_where_it_looks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert index_settings() == ""
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://index.example/it's")
    script = f'{index_settings()}printf %s "$PIP_INDEX_URL"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "https://index.example/it's"
