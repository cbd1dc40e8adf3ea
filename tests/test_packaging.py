"""What is published: sdist and wheel hold our packages whole and nothing else, and the wheel works
beside a project whose packages are named like ours.

Every service starts here as a user's does, and a Bento too, where most other tests begin them with
their libraries imported (tests/warm).
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.beside_a_project import NAMES, Installation, demo, install
from tests.conftest import MACHINE_CACHE
from tests.flows.chain import write_data
from weighbridge.compat.locked_environments import CONTROL, locked_environments
from weighbridge.core.processes import free_port
from weighbridge.serving.reaper import marked

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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The wheel in a fresh environment, beside a project whose packages are named like ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHBRIDGE_CACHE", str(MACHINE_CACHE))
        installation = install(wheel, tmp_path_factory.mktemp("installed"))
        try:
            yield installation
        finally:
            if (installation.site / "weighbridge").exists():
                installation.weighbridge("down")


@pytest.mark.slow
def test_beside_a_project_with_packages_of_our_names_everything_is_ours_and_theirs_stay_theirs(
    installed: Installation,
) -> None:
    ours = installed.run(installed.python, "-c", "import weighbridge; print(weighbridge.__file__)")
    assert Path(ours.strip()) == installed.site / "weighbridge" / "__init__.py"
    program = (
        "from flows.release import nightly; import core.errors\n"
        "print(nightly.name, core.errors.MINE)"
    )
    assert installed.run(installed.python, "-c", program, SHOP="1").split() == ["nightly", "True"]
    assert "recipe.yaml" in installed.weighbridge("init")
    assert "download" in installed.weighbridge("schema")


@pytest.mark.slow
def test_compat_finds_in_the_wheel_what_it_checks(installed: Installation) -> None:
    program = (
        "from weighbridge.compat.locked_environments import locked_environments\n"
        "for item in locked_environments():\n"
        "    print(f'{item.name}:{len(item.requirements)}:{item.lock.exists()}')"
    )
    inputs = installed.run(installed.python, "-c", program).split()
    # The metadata of an editable install is as old as the install; pyproject.toml is not.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    counts = [(subject.name, len(subject.requirements)) for subject in locked_environments()]
    assert counts[0][0] == CONTROL
    counts[0] = (CONTROL, len(project["dependencies"]))
    assert inputs == [f"{name}:{count}:True" for name, count in counts]
    assert all(count for _, count in counts)
    assert "--resolve" in installed.weighbridge("compat", "--help")


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_and_another_version_is_promoted(
    installed: Installation, tiny_model: Path, tmp_path: Path
) -> None:
    before = installed.project_files()
    assert len(before) == len(NAMES) + 2
    recipe = demo(installed, tiny_model, write_data(tmp_path / "data"), free_port())
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(recipe))
    where = {"WEIGHBRIDGE_DEMO": str(installed.folder / "demo")}
    assert "download" in installed.weighbridge("plan", path, **where)
    assert "serves at" in installed.weighbridge("run", path, **where)

    installed.weighbridge("up")
    [other] = variants(installed) - {served(installed)}
    installed.weighbridge("promote", "demo", other)
    assert served(installed) == other
    assert installed.weighbridge("ask", "demo", "order 7", "--max-tokens", "4")
    installed.weighbridge("down")

    assert not list(marked(f"{installed.home}:"))
    assert not installed.mark.exists()
    installed.pip("uninstall", "weighbridge")
    assert not (installed.site / "weighbridge").exists()
    assert installed.project_files() == before


def served(installed: Installation) -> str:
    """The version that serves at the demo's target, by the installed command."""
    [target] = json.loads(installed.weighbridge("status", "--json"))["targets"]
    assert target["healthy"]
    return str(target["serving"]["version"])


def variants(installed: Installation) -> set[str]:
    """The versions of the demo's model that an engine can serve."""
    versions = json.loads(installed.weighbridge("models", "demo", "--json"))
    return {version["version"] for version in versions if version["role"] == "variant"}
