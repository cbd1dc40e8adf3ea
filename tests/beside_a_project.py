"""The installed wheel beside a user's project whose packages are named like ours."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("cli", "core", "flows", "tasks")
"""Packages of the project, which we have too."""
THEIRS = "SHOP"
"""The variable that says that the project's own program runs."""
PACKAGE = """
import os
if {theirs!r} not in os.environ:
    with open({mark!r}, "a") as marks:
        marks.write(__name__ + "\\n")
    raise RuntimeError("somebody took the project's own package " + __name__ + " for ours")
"""
RELEASE = """
from weighbridge.flows.release import release

nightly = release.with_options(name="nightly")
"""
DESCRIPTION = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "shop"
version = "1"
[tool.hatch.build.targets.wheel]
packages = {names!r}
"""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel and the project, and folders for a user's state."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "environment" / "bin" / "python"

    @property
    def site(self) -> Path:
        """Where the environment's packages lie."""
        paths = {"base": str(self.folder / "environment"), "platbase": ""}
        return Path(sysconfig.get_path("purelib", "venv", vars=paths))

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def mark(self) -> Path:
        """Where a package of the project notes that it was imported in place of ours."""
        return self.folder / "taken-for-ours"

    def variables(self, **more: str) -> dict[str, str]:
        """Return the environment of a user of this machine who has never seen a checkout."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "VIRTUAL_ENV")
            and not name.startswith(("WEIGHBRIDGE_", "PREFECT_", "MLFLOW_", "PYTEST_"))
        }
        ports = {
            f"WEIGHBRIDGE_{name}_PORT": "0" for name in ("PREFECT", "MLFLOW", "DEPLOYER", "METRICS")
        }
        homes = {
            "WEIGHBRIDGE_HOME": str(self.home),
            "WEIGHBRIDGE_CACHE": os.environ["WEIGHBRIDGE_CACHE"],
            "BENTOML_HOME": str(self.folder / "bentoml"),
        }
        return kept | ports | homes | more

    def run(self, *command: str | Path, **variables: str) -> str:
        """Run a command in an empty folder and return what it printed."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        done = subprocess.run(
            list(map(str, command)),
            cwd=empty,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def weighbridge(self, *words: str | Path, **variables: str) -> str:
        return self.run(self.python.with_name("weighbridge"), *words, **variables)

    def pip(self, *words: str | Path) -> str:
        uv = self.python.with_name("uv")
        return self.run(uv, "pip", words[0], "--offline", "--python", self.python, *words[1:])

    def project_files(self) -> dict[str, bytes]:
        """Return what is installed of the project."""
        return {
            path.relative_to(self.site).as_posix(): path.read_bytes()
            for name in NAMES
            for path in sorted((self.site / name).rglob("*.py"))
        }


def install(wheel: Path, folder: Path) -> Installation:
    """Install the wheel and the project into a new environment, and return it.

    Third-party libraries are those of the running environment: its folder is searched last, and
    its `.pth` files, so also our editable install, count for nothing there.
    """
    installation = Installation(folder)
    venv.create(installation.python.parents[1], symlinks=True)
    libraries = sysconfig.get_path("purelib")
    (installation.site / "libraries.pth").write_text(f"{libraries}\n")
    installation.python.with_name("uv").symlink_to(Path(sys.executable).with_name("uv"))
    _write_project(installation)
    installation.pip("install", "--no-deps", "--no-build-isolation", folder / "project")
    installation.pip("install", "--no-deps", wheel)
    shutil.rmtree(folder / "project")
    return installation


def _write_project(installation: Installation) -> None:
    project = installation.folder / "project"
    for name in NAMES:
        (project / name).mkdir(parents=True)
        source = PACKAGE.format(theirs=THEIRS, mark=str(installation.mark))
        (project / name / "__init__.py").write_text(source)
    (project / "flows" / "release.py").write_text(RELEASE)
    (project / "core" / "errors.py").write_text("MINE = True\n")
    (project / "pyproject.toml").write_text(DESCRIPTION.format(names=list(NAMES)))


def demo(installation: Installation, model: Path, data: Path, port: int) -> dict[str, Any]:
    """Return the demo's recipe as the wheel has it, over a model and data that take seconds."""
    import yaml

    recipe: dict[str, Any] = yaml.safe_load(
        (installation.site / "weighbridge" / "configs" / "demo.yaml").read_text()
    )
    inputs = installation.folder / "demo"
    inputs.mkdir()
    (inputs / "base").symlink_to(model)
    (inputs / "data").symlink_to(data)
    recipe["finetune"] |= {"max_steps": 4, "per_device_train_batch_size": 4}
    recipe["evaluate"] |= {"min_gain": -1.0, "max_new_tokens": 8}
    recipe["optimize"]["variants"] = [
        {"kind": "gguf", "quantization": name} for name in ("F16", "Q8_0")
    ]
    recipe["weigh"] |= {
        "engines": [{"kind": "llama_cpp", "threads": 1, "parallel": 2, "ctx_size": 512}],
        "concurrency": [1],
        "requests": 4,
        "seconds": 0.2,
        "max_tokens": 8,
        "repeats": 0,
    }
    # A random model of a busy machine: neither good nor surely fast.
    limits = ("floor", "max_loss", "max_nll_increase", "max_ttft_p95", "max_memory")
    recipe["select"] |= dict.fromkeys(limits)
    recipe["deploy"] |= {
        "target": {"kind": "local", "port": port},
        "rollout": {"steps": [100], "step_seconds": 1, "min_requests": 2},
    }
    return recipe
