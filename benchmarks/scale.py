"""Beyond one machine: the shared store, stages on work pools, candidates side by side, a promotion.

The store: bytes moved against bytes needed, and how fast, on a real S3 service. A home computes an
artifact and shares it; an empty home reuses the stage, and fetches the files. Every byte between
the homes and the service is counted, headers included. The others: see benchmarks/scale_stages.py
and benchmarks/scale_cluster.py.

Usage: python -m benchmarks.scale [--only store|stage|workers|promotion] [--mib MIB] [--rounds N]
"""

import argparse
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks import scale_cluster, scale_stages
from benchmarks.common import report
from tests.stand_ins.swift import Swift
from weighbridge.core.artifact import Artifact
from weighbridge.core.settings import Settings
from weighbridge.core.workspace import Workspace

MIB: Final = 1 << 20
FILES: Final = 4
BUCKET: Final = "scale"
GOALS: Final[Mapping[str, Mapping[str, float]]] = {
    "shared_bytes_ratio": {"at_most": 1.01},
    "fetched_bytes_ratio": {"at_most": 1.01},
    "reused_bytes": {"at_most": 20_000},
    "again_bytes": {"at_most": 20_000},
}
"""Bytes moved over bytes needed; and what is left where nothing needs to move."""


class Counting:
    """A TCP proxy in front of a service that counts the bytes of both directions."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._service = (str(parts.hostname), int(parts.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._lock = threading.Lock()
        self.bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def taken(self) -> int:
        """Return the bytes since the last call."""
        with self._lock:
            count, self.bytes = self.bytes, 0
        return count

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            service = socket.create_connection(self._service)
            for source, target in ((client, service), (service, client)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while chunk := source.recv(256 << 10):
                target.sendall(chunk)
                with self._lock:
                    self.bytes += len(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


def make(workspace: Workspace, size: int) -> Artifact:
    with workspace.store.scratch() as scratch:
        for number in range(FILES):
            (scratch / f"part-{number}.safetensors").write_bytes(os.urandom(size // FILES))
        return workspace.store.add(scratch, "safetensors")


def measure(folder: Path, service: Counting, size: int) -> dict[str, float]:
    """Return bytes, seconds and ratios of sharing, reusing and fetching."""

    def home(name: str) -> Workspace:
        return Workspace(Settings(home=folder / name, store=f"s3://{BUCKET}/team"))

    def stage(workspace: Workspace, compute: Callable[[], Artifact]) -> Artifact:
        return workspace.stages.run("finetune", 1, Artifact, {}, compute).value

    def never() -> Artifact:
        raise AssertionError("the other home has computed it")

    first, second = home("a"), home("b")
    made = make(first, size)
    service.taken()
    started = time.monotonic()
    stage(first, lambda: made)
    shared_seconds, shared = time.monotonic() - started, service.taken()
    stage(first, never)
    again = service.taken()
    reused = stage(second, never)
    reused_bytes = service.taken()
    started = time.monotonic()
    assert sum(path.stat().st_size for path in reused.path.iterdir()) == made.size
    fetched_seconds, fetched = time.monotonic() - started, service.taken()
    return {
        "needed_mb": round(made.size / 1e6, 1),
        "shared_bytes_ratio": round(shared / made.size, 4),
        "shared_mb_per_s": round(made.size / 1e6 / shared_seconds, 1),
        "again_bytes": again,
        "reused_bytes": reused_bytes,
        "fetched_bytes_ratio": round(fetched / made.size, 4),
        "fetched_mb_per_s": round(made.size / 1e6 / fetched_seconds, 1),
    }


def store(mib: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="scale"))
    try:
        with Swift(folder, Settings().cache) as swift, closing(Counting(swift.url)) as service:
            os.environ.update({**swift.variables, "AWS_ENDPOINT_URL": service.url})
            swift.create_bucket(BUCKET)
            figures = measure(folder, service, mib * MIB)
    finally:
        shutil.rmtree(folder)
    for name, value in figures.items():
        print(f"{name:22} {value:,}")
    holds = all(figures[name] <= goal["at_most"] for name, goal in GOALS.items())
    print(json.dumps({"benchmark": "scale", "figures": figures, "goals": GOALS, "holds": holds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("store", "stage", "workers", "promotion"))
    parser.add_argument("--mib", type=int, default=256, help="bytes of the artifact")
    parser.add_argument("--rounds", type=int, default=3, help="turns of a stage, or promotions")
    chosen = parser.parse_args()
    if chosen.only in (None, "store"):
        store(chosen.mib)
    if chosen.only in (None, "stage"):
        report(scale_stages.stage(chosen.rounds))
    if chosen.only in (None, "workers"):
        report(scale_stages.workers())
    if chosen.only in (None, "promotion"):
        report(scale_cluster.promotion(chosen.rounds))


if __name__ == "__main__":
    main()
