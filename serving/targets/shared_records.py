"""Records of a target in a place that many machines reach, such as an object of a cluster's API.

A place keeps two things, each under a version that it changes by itself: all documents of the
target together (a ConfigMap), and a lease that tells who holds the lock (a coordination Lease).
`SharedRecords` makes records of that. What it relies on is that a write which names an earlier
version is refused.

The lease is renewed while the block lasts. Whoever waits for it takes it once it has not changed
for its length by a clock of its own: clocks of two machines are never compared. Each holder has a
number, higher than all before, and writes it among the documents first. What a holder changes is
refused where a higher number is there by then, so one that was stopped for long, and does not know
that its time is over, changes nothing.
"""

import contextlib
import json
import logging
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

from weighbridge.core import process_identity
from weighbridge.core.errors import Unavailable, WeighbridgeError
from weighbridge.serving.targets.records import (
    Change,
    Document,
    LockLost,
    TargetLocked,
    TargetRecords,
)

logger = logging.getLogger(__name__)

HOLDER: Final = "lock.holder"
"""Document with the number of the newest holder."""
CHANGED: Final = "changed.json"
"""Document with the Unix time of each document's last change."""


class OutOfDate(Exception):
    """The version that a write named is not the newest one."""


@dataclass(frozen=True)
class Lease:
    """Who holds the lock. The fields are those of a coordination Lease of Kubernetes."""

    holder: str = ""
    """Empty: nobody."""
    transitions: int = 0
    """How often it changed hands."""
    seconds: float = 0.0
    """Length: how long it may stay unchanged."""
    acquired: float = 0.0
    """Unix time by the holder's clock, for people alone; so is the next."""
    renewed: float = 0.0


class SharedPlace(ABC):
    """What a place must be able to do. Its methods may be called from several threads at once."""

    name: str
    """For people, and to tell this place from others: `configmap/weighbridge-shop in ns`."""

    @abstractmethod
    def read_documents(self) -> tuple[Mapping[str, str], str]:
        """Return all documents by name, and their version; ({}, "") where there are none yet.

        Raises:
            Unavailable: it does not answer, or refuses; the message names the right that lacks.
        """

    @abstractmethod
    def write_documents(self, documents: Mapping[str, str], version: str) -> str:
        """Replace all documents, and return the new version.

        Args:
            documents: all that there shall be; what is missing is removed.
            version: of those that are replaced; "": there must be none yet.

        Raises:
            OutOfDate: they have been changed since.
            Unavailable: as above. It may have been done all the same.
        """

    @abstractmethod
    def read_lease(self) -> tuple[Lease, str]:
        """Return the lease and its version; (Lease(), "") where there is none yet.

        Raises:
            Unavailable: as above.
        """

    @abstractmethod
    def write_lease(self, lease: Lease, version: str) -> str:
        """Replace the lease, and return its new version.

        Args:
            lease: what it shall be.
            version: of the one that is replaced; "": there must be none yet.

        Raises:
            OutOfDate: it has been changed since.
            Unavailable: as above. It may have been done all the same.
        """


@dataclass(frozen=True)
class _Seen:
    """All documents as they were at one moment."""

    documents: Mapping[str, str]
    version: str
    at: float
    """By `time.monotonic`, of the moment before they were asked for."""


@dataclass
class _Memory:
    """What was seen or written last."""

    last: _Seen | None = None


@dataclass(frozen=True)
class SharedRecords(TargetRecords):
    """Records in a shared place."""

    at: SharedPlace
    held: "HeldLease | None" = None
    _memory: _Memory = field(default_factory=_Memory, compare=False)

    LEASE_SECONDS: ClassVar[float] = 30.0
    """Length of a lease: so long after the death of its holder another one takes over."""
    POLL: ClassVar[float] = 1.0
    """Seconds between two looks of whoever waits for the lock."""
    GLANCE: ClassVar[float] = 1.0
    """Seconds for which a glance may be old."""
    OUTBOX_BYTES: ClassVar[int | None] = 512 * 1024
    """Half of what a ConfigMap holds: a rollout takes 2 KiB, its begin and end 1 KiB."""

    @property
    def place(self) -> str:
        return self.at.name

    def read(self, name: str) -> Document:
        """Return a document as it is now. Raises Unavailable, LockLost."""
        return _document(self._look().documents, name)

    def change(self, name: str, change: Change) -> None:
        """Change a document. Raises Unavailable, LockLost."""
        self._check_held()
        # A write names the version that it replaces. So it may go by what was seen last: where
        # that is not the newest any more, as after another took the lock, the place refuses it.
        seen, is_newest = self._memory.last, False
        while True:
            if seen is None:
                seen, is_newest = self._look(), True
            content = change(_document(seen.documents, name).content)
            if content is not None:
                with contextlib.suppress(OutOfDate):
                    self._write(_with(seen.documents, name, content), seen.version)
                    return
            elif is_newest:
                return
            seen = None

    def glance(self, name: str) -> bytes:
        """Return what a document held at most a second ago. Raises Unavailable, LockLost."""
        self._check_held()
        seen = self._memory.last
        if seen is None or time.monotonic() - seen.at >= self.GLANCE:
            seen = self._glimpse(seen)
        return _document(seen.documents, name).content

    def is_locked(self) -> bool:
        """Whether somebody holds a lease that has been changed not long ago."""
        lease, version = self.at.read_lease()
        return bool(lease.holder) and not _is_over(self.at.name, lease, version)

    @contextlib.contextmanager
    def lock(self, *, wait: bool) -> Iterator[Self]:
        """Take the lease, say so among the documents, and renew it for as long as the block lasts.

        Raises:
            TargetLocked: another holds it, and it is not waited for.
            Unavailable: the place does not answer.
        """
        held, seen = self._taken(wait)
        with held:
            locked = replace(self, held=held, _memory=_Memory())
            locked._announce(held.lease.transitions, seen)
            yield locked

    def _taken(self, wait: bool) -> "tuple[HeldLease, _Seen]":
        """Return the lease, and the documents as they were before it was taken."""
        while True:
            lease, version = self.at.read_lease()
            if not lease.holder or _is_over(self.at.name, lease, version):
                seen = self._look()
                number = 1 + max(lease.transitions, _holder(seen.documents))
                with contextlib.suppress(OutOfDate):
                    return HeldLease.take(self.at, number, self.LEASE_SECONDS, version), seen
            elif not wait:
                raise TargetLocked(f"deploying by {self.place}", f"{lease.holder} does")
            else:
                time.sleep(self.POLL)

    def _announce(self, number: int, seen: _Seen) -> None:
        """Write down who holds the lock: from here on no earlier holder changes anything."""
        while True:
            with contextlib.suppress(OutOfDate):
                self._write({**seen.documents, HOLDER: str(number)}, seen.version)
                return
            seen = self._look()

    def _look(self) -> _Seen:
        """Return all documents as they are, where the lock is not needed or still held."""
        before, at = self._memory.last, time.monotonic()
        seen = _Seen(*self.at.read_documents(), at)
        if self.held is not None:
            self.held.check()
            _refuse_older(seen.documents, self.held.lease.transitions, self.place)
        # What another thread has written meanwhile is newer.
        if self._memory.last is before:
            self._memory.last = seen
        return seen

    def _glimpse(self, before: _Seen | None) -> _Seen:
        """Return the same, or while the place is away what was seen before."""
        try:
            return self._look()
        except LockLost:
            raise
        except Unavailable:
            # A place that is away for a moment ends no rollout: the lease bounds that moment.
            if self.held is None or before is None:
                raise
        if self._memory.last is before:
            self._memory.last = replace(before, at=time.monotonic())
        return before

    def _write(self, documents: Mapping[str, str], version: str) -> None:
        """Replace all documents. Raises OutOfDate, Unavailable."""
        at = time.monotonic()
        self._memory.last = _Seen(documents, self.at.write_documents(documents, version), at)

    def _check_held(self) -> None:
        if self.held is not None:
            self.held.check()


class HeldLease:
    """A lease of this process, which a thread renews."""

    def __init__(self, place: SharedPlace, lease: Lease, version: str) -> None:
        self.lease = lease
        self._place, self._version = place, version
        self._renewed = time.monotonic()
        self._lost = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @classmethod
    def take(cls, place: SharedPlace, number: int, seconds: float, version: str) -> Self:
        """Take a lease that is free. Raises OutOfDate where another was faster."""
        # A name that no other holder has: a process may hold it twice, one after the other.
        holder = f"{process_identity.identity()} {uuid.uuid4().hex[:8]}"
        now = time.time()
        lease = Lease(holder, number, seconds, acquired=now, renewed=now)
        return cls(place, lease, place.write_lease(lease, version))

    def check(self) -> None:
        """Raise LockLost where another holds it by now, or could not be told that this one does."""
        # Somewhat earlier than others may take it.
        if not self._lost and time.monotonic() - self._renewed > self.lease.seconds * 2 / 3:
            self._lost = "it could not be renewed in time"
        if self._lost:
            raise _lost(self._place.name, self._lost)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Give it back, where it is still held."""
        self._over.set()
        self._thread.join()
        if self._lost:
            return
        # Where it can't be given back, it becomes free by itself.
        with contextlib.suppress(OutOfDate, WeighbridgeError):
            free = replace(self.lease, holder="", renewed=time.time())
            self._place.write_lease(free, self._version)

    def _renew(self) -> None:
        while not self._over.wait(self.lease.seconds / 6):
            began = time.monotonic()
            lease = replace(self.lease, renewed=time.time())
            try:
                self._version = self._place.write_lease(lease, self._version)
            except OutOfDate:
                if not self._is_own():
                    self._lost = "another deployer has taken it"
                    return
            except Unavailable as exc:
                logger.warning("renewing the lock of %s: %s", self._place.name, exc)
            else:
                self._renewed = began

    def _is_own(self) -> bool:
        """Whether the lease is still this one: a renewal may have been done, and not answered."""
        with contextlib.suppress(Unavailable):
            lease, version = self._place.read_lease()
            if (lease.holder, lease.transitions) != (self.lease.holder, self.lease.transitions):
                return False
            self._version = version
        return True


_SEEN: dict[str, tuple[str, float]] = {}
"""By place: the version of its lease that was last seen, and since when, by `time.monotonic`."""


def _is_over(place: str, lease: Lease, version: str) -> bool:
    """Whether a lease has been seen unchanged for longer than it lasts."""
    seen, since = _SEEN.get(place, ("", 0.0))
    if seen != version:
        _SEEN[place] = version, time.monotonic()
        return False
    return time.monotonic() - since > lease.seconds


def _document(documents: Mapping[str, str], name: str) -> Document:
    content = documents.get(name, "")
    if not content:
        return Document()
    times: dict[str, float] = json.loads(documents.get(CHANGED, "{}"))
    return Document(content.encode(), times.get(name, 0.0))


def _with(documents: Mapping[str, str], name: str, content: bytes) -> dict[str, str]:
    """Return the documents with one changed, and with the time of that."""
    times = {**json.loads(documents.get(CHANGED, "{}")), name: time.time()}
    others = {key: text for key, text in documents.items() if key != name}
    changed = {name: content.decode("utf-8", "replace")} if content else {}
    return {**others, **changed, CHANGED: json.dumps(times)}


def _holder(documents: Mapping[str, str]) -> int:
    return int(documents.get(HOLDER, "0"))


def _refuse_older(documents: Mapping[str, str], number: int, place: str) -> None:
    if _holder(documents) > number:
        raise _lost(place, "another deployer has taken it")


def _lost(place: str, why: str) -> LockLost:
    return LockLost(f"deploying by {place}", f"its lock is lost: {why}", "the next look goes on")
