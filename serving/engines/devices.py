"""Which accelerators this machine has, found without loading anything: engines ask while a recipe
is read.
"""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

DEVICES: Final = Path("/dev")


def nvidia_devices() -> int:
    """NVIDIA GPUs that a process started now would see: the driver's device files, narrowed by
    CUDA_VISIBLE_DEVICES.
    """
    present = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in DEVICES.glob("nvidia*"))
    # On WSL the driver has one device file for all.
    present = present or int((DEVICES / "dxg").exists() and shutil.which("nvidia-smi") is not None)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = [word.strip() for word in visible.split(",")]
    # CUDA itself stops at the first name that means nothing.
    wrong = next(
        (place for place, word in enumerate(named) if word in ("", "-1", "NoDevFiles")), len(named)
    )
    return min(present, wrong)


@cache
def compute_capability() -> tuple[int, int] | None:
    """The lowest among this machine's NVIDIA GPUs, as the driver tells it; None where nobody can
    say.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    found = re.findall(r"^(\d+)\.(\d+)$", done.stdout, re.MULTILINE) if done.returncode == 0 else []
    return min(((int(major), int(minor)) for major, minor in found), default=None)
