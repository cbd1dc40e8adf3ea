"""Resolve every environment's direct requirements into its lock: exact versions, with hashes.

An environment is described by requirements (`*.in`, or pyproject.toml for the control plane) and
installed from the lock beside them. PyTorch and the libraries only it needs are kept apart, in
core/torch.lock (the build the package index carries) and core/torch.cpu.lock (the CPU build, where
UV_FIND_LINKS offers one), so that the same lock serves a machine with and without a GPU. A lock
that wants them says so at its top, which core/environments.py reads.

A file `*.overrides` beside the requirements, in uv's own form, stands above what packages ask for
in their metadata; `; sys_platform == 'never'` there leaves a package out. Such a lock says at its
top that it is to be installed as it is.

Usage: python locks/update.py [NAME …]
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
CORE = ROOT / "core"
NEEDS_TORCH = "# needs: torch"
AS_IT_IS = "# install: --no-deps"
TORCH = "torch==2.13.0"
LEFT_OUT = re.compile(r"; sys_platform == 'never'")
PART_OF_TORCH = re.compile(r"^(torch|triton|cuda-[a-z-]+|nvidia-(?!ml-py|pytriton)[a-z0-9-]+)==")


def compile_lock(arguments: list[str], *, find_links: bool = False) -> list[str]:
    """Return the resolver's output, one entry (requirement and its hashes) per item."""
    environment = {k: v for k, v in os.environ.items() if find_links or k != "UV_FIND_LINKS"}
    command = [
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
    ]
    output = subprocess.run(
        [*command, "--python-version", "3.11", *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    return re.split(r"\n(?=[a-zA-Z0-9])", output.strip())


def write(lock: Path, entries: list[str], *header: str) -> None:
    """Write a lock: lines that core/environments.py reads, then the entries."""
    lock.write_text("\n".join([*header, *entries]) + "\n")
    print(f"{lock.relative_to(ROOT)}: {len(entries)} packages")


def lock_environment(requirements: list[str], lock: Path) -> None:
    """Resolve requirements into a lock, and leave out what belongs to PyTorch."""
    overrides = lock.with_suffix(".overrides")
    overriding = ["--overrides", str(overrides)] if overrides.exists() else []
    with tempfile.NamedTemporaryFile("w", suffix=".in") as constraint:
        # What is resolved against another PyTorch than the one it gets does not load.
        print(TORCH, file=constraint, flush=True)
        entries = compile_lock(
            ["--universal", "--constraints", constraint.name, *overriding, *requirements]
        )
    entries = [entry for entry in entries if not LEFT_OUT.search(entry)]
    own = [entry for entry in entries if not PART_OF_TORCH.match(entry)]
    write(lock, own, *[NEEDS_TORCH] * (len(own) < len(entries)), *[AS_IT_IS] * bool(overriding))


def lock_torch() -> None:
    """Resolve PyTorch itself: the build of the package index, and the CPU build."""
    spec = CORE / "torch.in"
    spec.write_text(TORCH + "\n")
    universal = compile_lock(["--universal", str(spec)])
    write(CORE / "torch.lock", [entry for entry in universal if PART_OF_TORCH.match(entry)])
    spec.write_text(TORCH + "+cpu\n")
    cpu = compile_lock([str(spec)], find_links=True)
    write(CORE / "torch.cpu.lock", [entry for entry in cpu if PART_OF_TORCH.match(entry)])
    spec.unlink()


def main(names: list[str]) -> None:
    """Resolve the environments of these names, or all."""
    wanted = set(names)
    if not wanted or "torch" in wanted:
        lock_torch()
    control = {"control": ["--extra", "kubernetes"], "dev": ["--group", "dev", "--all-extras"]}
    for name, extra in control.items():
        if not wanted or name in wanted:
            lock_environment(["pyproject.toml", *extra], LOCKS / f"{name}.lock")
    for spec in sorted(p for p in ROOT.rglob("*.in") if ".venv" not in p.parts):
        if not wanted or spec.stem in wanted:
            lock_environment([str(spec.relative_to(ROOT))], spec.with_suffix(".lock"))


if __name__ == "__main__":
    main(sys.argv[1:])
