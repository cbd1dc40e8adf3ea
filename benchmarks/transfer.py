"""The S3 source against s5cmd, on a real S3 service on this machine: many small objects, and a
large one.

Ours arrives verified in the store; s5cmd's files are only written. Both run in processes that are
already warm but for their own start, sides alternate, and medians count.

Usage: python -m benchmarks.transfer [rounds]
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from tests.stand_ins.swift import Swift
from weighbridge.core.environments import ensure
from weighbridge.core.settings import Settings
from weighbridge.core.store import Store
from weighbridge.tasks.sources.base import gathering
from weighbridge.tasks.sources.s3 import S3Args, S3Source

MIB: Final = 1 << 20
SHAPES: Final = {"small": (200, MIB), "large": (1, 256 * MIB)}
"""Objects and bytes per object."""
BUCKET: Final = "transfer"
GOALS: Final = {"small_ratio": {"at_least": 0.5}, "large_ratio": {"at_least": 0.5}}
"""Of s5cmd's throughput: it is compiled, and verifies nothing."""


def fill(swift: Swift) -> None:
    """Upload random bytes, without digests: verification has only what it computes itself."""
    client = swift.client()
    client.create_bucket(Bucket=BUCKET)
    for shape, (count, size) in SHAPES.items():
        for number in range(count):
            client.put_object(Bucket=BUCKET, Key=f"{shape}/{number}", Body=os.urandom(size))


def ours(shape: str, folder: Path) -> None:
    args = S3Args(bucket=BUCKET, prefix=shape)
    gathering(S3Source().list_files(args), args, Store(folder)).run(shape)


def s5cmd(program: Path, shape: str, folder: Path) -> None:
    command: list[str | Path] = [
        program,
        "--endpoint-url",
        os.environ["AWS_ENDPOINT_URL"],
        "cp",
        f"s3://{BUCKET}/{shape}/*",
        f"{folder}/",
    ]
    subprocess.run(command, check=True, capture_output=True)


def seconds(work: Callable[[Path], None]) -> float:
    folder = Path(tempfile.mkdtemp(prefix="transfer"))
    try:
        started = time.monotonic()
        work(folder)
        return time.monotonic() - started
    finally:
        shutil.rmtree(folder)


def measure(program: Path, rounds: int) -> dict[str, float]:
    """Return MB/s of both sides by shape, and the ratio of their medians."""
    figures: dict[str, float] = {}
    for shape, (count, size) in SHAPES.items():
        sides: dict[str, list[float]] = {"ours": [], "s5cmd": []}
        for _ in range(rounds):
            sides["ours"].append(seconds(partial(ours, shape)))
            sides["s5cmd"].append(seconds(partial(s5cmd, program, shape)))
        for side, times in sides.items():
            rate = count * size / 1e6 / statistics.median(times)
            print(
                f"{shape:6} {side:6} {rate:7.1f} MB/s   median {statistics.median(times):.2f} s"
                f" (from {min(times):.2f} to {max(times):.2f})"
            )
            figures[f"{shape}_{side}_mb_per_s"] = round(rate, 1)
        figures[f"{shape}_ratio"] = round(
            statistics.median(sides["s5cmd"]) / statistics.median(sides["ours"]), 3
        )
    return figures


def main(rounds: int = 5) -> None:
    cache = Settings().cache
    program = ensure(Path(__file__).with_name("s5cmd.lock"), cache).bin("s5cmd")
    with tempfile.TemporaryDirectory() as folder, Swift(Path(folder), cache) as swift:
        os.environ.update(swift.variables)
        fill(swift)
        figures = measure(program, rounds)
    holds = all(figures[name] >= goal["at_least"] for name, goal in GOALS.items())
    print(json.dumps({"benchmark": "transfer", "figures": figures, "goals": GOALS, "holds": holds}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
