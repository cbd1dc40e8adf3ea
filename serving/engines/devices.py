"""Which accelerators this machine has.

Engines ask while a recipe is read: no library is loaded to find out.
"""

import itertools
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

DEVICES: Final = Path("/dev")


def nvidia_devices() -> int:
    """Return how many NVIDIA GPUs a process started now would see.

    Those are the driver's device files, narrowed by CUDA_VISIBLE_DEVICES.
    """
    present = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in DEVICES.glob("nvidia*"))
    # On WSL the driver has one device file for all.
    present = present or int((DEVICES / "dxg").exists() and shutil.which("nvidia-smi") is not None)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    selected = [word.strip() for word in visible.split(",")]
    # CUDA itself ignores everything from the first name on that means no device.
    invalid = ("", "-1", "NoDevFiles")
    valid = itertools.takewhile(lambda device: device not in invalid, selected)
    return min(present, sum(1 for _ in valid))


@cache
def compute_capability() -> tuple[int, int] | None:
    """Return the lowest among this machine's NVIDIA GPUs; None where the driver does not say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    query = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if query.returncode != 0:
        return None
    versions = re.findall(r"^(\d+)\.(\d+)$", query.stdout, re.MULTILINE)
    return min(((int(major), int(minor)) for major, minor in versions), default=None)
