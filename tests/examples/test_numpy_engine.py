"""The example of a third party's engine, installed as a package of its own, is found and passes the
suite.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from weighbridge.core.environments import run_uv

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "numpy_engine"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the package and its metadata, as pip lays them out."""
    # setuptools writes beside what it builds.
    source = shutil.copytree(EXAMPLE, tmp_path / "source")
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "--target",
        str(tmp_path / "site"),
    ]
    run_uv("installing the example", "pip", "install", *options, str(source))
    return tmp_path / "site"


def weighbridge(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = {**os.environ, "PYTHONPATH": f"{site}:{ROOT}/src:{ROOT}"}
    command = [sys.executable, "-m", "weighbridge.cli.main", *words]
    return subprocess.run(command, env=paths, cwd=site, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_engine_of_another_package_is_listed_and_passes_the_suite(installed: Path) -> None:
    listed = {
        row["engine"]: row for row in json.loads(weighbridge(installed, "engines", "--json").stdout)
    }
    assert listed["numpy"]["formats"] == ["safetensors"]
    assert listed["numpy"]["checked"] is None
    done = weighbridge(installed, "engines", "check", "numpy", "--json")
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert {outcome["verdict"] for outcome in report["outcomes"]} == {"passed"}, report["outcomes"]
    again = {
        row["engine"]: row for row in json.loads(weighbridge(installed, "engines", "--json").stdout)
    }
    assert again["numpy"]["checked"].startswith(f"{len(report['outcomes'])} passed (numpy 2.")
