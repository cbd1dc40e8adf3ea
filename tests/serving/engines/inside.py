"""Run Python inside an engine's environment, our packages importable."""

import subprocess
from pathlib import Path

from tests.conftest import MACHINE_CACHE
from weighbridge.core.environments import ensure

SOURCES = Path(__file__).resolve().parents[3] / "src"


def run_inside(lock: Path, body: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What the program `body` prints and how it ends, in the environment of `lock`."""
    program = f"import sys; sys.path.append({str(SOURCES)!r})\nfrom pathlib import Path\n{body}"
    python = ensure(lock, MACHINE_CACHE).python
    return subprocess.run([python, "-I", "-c", program], cwd=cwd, capture_output=True, text=True)
