"""What is published: sdist and wheel hold our packages whole and nothing else."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINK_MODE = "120000"
"""Git's mode of a symbolic link."""
BESIDE_THE_PACKAGES = {
    "prefect.yaml": "weighbridge/prefect.yaml",
    "locks/control.lock": "weighbridge/locks/control.lock",
}
"""Data of ours that lie outside the packages in a checkout, and inside in the wheel."""


@pytest.fixture(scope="module")
def tracked() -> dict[str, str]:
    """Every file that git tracks, with its mode."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so nobody says what should be published")
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    entries = [entry.split("\t") for entry in listed.stdout.split("\0") if entry]
    return {path: stage.split()[0] for stage, path in entries if (ROOT / path).exists()}


@pytest.fixture(scope="module")
def packages(tracked: dict[str, str]) -> set[str]:
    """The folders that are imported as `weighbridge.…`."""
    links = [path for path, mode in tracked.items() if mode == LINK_MODE]
    assert all(Path(link).parent == Path("src/weighbridge") for link in links)
    return {Path(link).name for link in links}


@pytest.fixture(scope="module")
def sdist(tracked: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git tracks alone, as in a fresh checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for path in tracked:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, checkout / path, follow_symlinks=False)
    return build("sdist", checkout)


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the checkout."""
    return build("wheel", sdist.parents[1])


def build(kind: str, checkout: Path) -> Path:
    """Build the sdist or the wheel of a source tree with the backend alone, without an index."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind]
    subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    [built] = (checkout / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def digests(wheel: Path) -> dict[str, str]:
    """The files in a wheel, with the digests of their contents."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_wheel_holds_every_tracked_file_of_our_packages_and_nothing_else(
    wheel: Path, tracked: dict[str, str], packages: set[str]
) -> None:
    expected = {
        BESIDE_THE_PACKAGES.get(path, f"weighbridge/{path.removeprefix('src/weighbridge/')}"): path
        for path, mode in tracked.items()
        if mode != LINK_MODE
        and (
            path in BESIDE_THE_PACKAGES
            or path.startswith("src/weighbridge/")
            or path.partition("/")[0] in packages
        )
    }
    assert {"weighbridge/__init__.py", "weighbridge/py.typed"} <= set(expected)
    published = {
        name: digest for name, digest in digests(wheel).items() if ".dist-info/" not in name
    }
    assert published == {
        name: hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
        for name, path in expected.items()
    }


def test_the_wheel_holds_no_link(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        kinds = {entry.external_attr >> 28 for entry in archive.infolist()}
    assert kinds <= {0, 0o10}, "every entry is a regular file"


def test_the_sdist_holds_every_tracked_file_but_the_links_and_ci(
    sdist: Path, tracked: dict[str, str]
) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    wanted = {path for path, mode in tracked.items() if mode != LINK_MODE}
    assert names == {path for path in wanted if not path.startswith(".ci/")} | {"PKG-INFO"}


def test_the_wheel_from_the_sdist_is_the_wheel_from_the_checkout(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    assert digests(build("wheel", source)) == digests(wheel)
