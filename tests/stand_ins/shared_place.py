"""A shared place in memory, and a target whose records lie there: two homes that deploy to it see
the same.
"""

import threading
import time
from collections.abc import Mapping
from typing import ClassVar, Literal

from tests.stand_ins.target import WORLDS, MemoryArgs, MemoryTarget
from weighbridge.core.errors import Unavailable
from weighbridge.serving.targets import shared_records
from weighbridge.serving.targets.base import TargetArgs
from weighbridge.serving.targets.shared_records import Lease, OutOfDate, SharedPlace, SharedRecords

PATH = "tests.stand_ins.shared_place:SharedTarget"
PLACES: dict[int, "MemoryPlace"] = {}
"""By the identity of the world that the target is on."""


class MemoryPlace(SharedPlace):
    """Two objects under versions, as an API server keeps them."""

    def __init__(self, name: str = "shop in memory") -> None:
        self.name = name
        self.documents: dict[str, str] = {}
        self.lease = Lease()
        self.versions = {"documents": 0, "lease": 0}
        self.is_away = False
        self.reads = 0
        """How often the documents were asked for."""
        self._cut_off = 0
        """Number of a holder that can't renew the lease, nor give it back."""
        self._lock = threading.Lock()

    def read_documents(self) -> tuple[Mapping[str, str], str]:
        with self._lock:
            self._answer()
            self.reads += 1
            return dict(self.documents), self._version("documents")

    def write_documents(self, documents: Mapping[str, str], version: str) -> str:
        with self._lock:
            self._answer()
            self._advance("documents", version)
            self.documents = dict(documents)
            return self._version("documents")

    def read_lease(self) -> tuple[Lease, str]:
        with self._lock:
            self._answer()
            return self.lease, self._version("lease")

    def write_lease(self, lease: Lease, version: str) -> str:
        with self._lock:
            self._answer()
            if lease.transitions == self._cut_off:
                raise Unavailable("writing the lease", "its process is dead, or cut off")
            self._advance("lease", version)
            self.lease = lease
            return self._version("lease")

    def cut_holder_off(self) -> None:
        """Have whoever holds the lock be dead, or without network."""
        self._cut_off = self.lease.transitions

    def let_lease_run_out(self) -> None:
        """Have everybody who waits have waited for as long as the lease lasts."""
        version = self._version("lease")
        shared_records._SEEN[self.name] = version, time.monotonic() - self.lease.seconds - 1

    def _answer(self) -> None:
        if self.is_away:
            raise Unavailable(f"asking {self.name}", "it does not answer")

    def _version(self, which: str) -> str:
        return str(self.versions[which] or "")

    def _advance(self, which: str, version: str) -> None:
        if version != self._version(which):
            raise OutOfDate
        self.versions[which] += 1


class SharedArgs(MemoryArgs):
    kind: Literal["shared"] = "shared"  # type: ignore[assignment]


class SharedTarget(MemoryTarget):
    """The plugin `shared`."""

    Args: ClassVar[type[TargetArgs]] = SharedArgs

    def records(self) -> SharedRecords:
        return SharedRecords(PLACES.setdefault(id(WORLDS[self.home]), MemoryPlace()))
