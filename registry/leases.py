"""Who carries out a run of MLflow: its process, and a lease that this renews while it lives.

A process of this machine can be looked up. Of one on another machine, or in another container,
only its lease tells: where it was not renewed for so long, the process is taken for dead.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from weighbridge.core import process_identity

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

OWNER: Final = "weighbridge.owner"
LEASE: Final = "weighbridge.lease"
"""Tag: Unix time until which the owner is taken for alive."""
SECONDS: Final = 180.0
"""Clocks of two machines may differ by a minute, and MLflow be away for another."""
RENEWED_EVERY: Final = 30.0

logger = logging.getLogger(__name__)


def tags() -> dict[str, str]:
    """Return the tags of a run that this process carries out from now on."""
    return {OWNER: process_identity.identity(), LEASE: f"{time.time() + SECONDS:.0f}"}


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that carried out the run with these tags has ended."""
    gone = process_identity.is_gone(tags.get(OWNER, ""))
    if gone is not None:
        return gone
    try:
        return time.time() > float(tags[LEASE])
    # An older release wrote none: nobody can tell.
    except (KeyError, ValueError):
        return False


def of_run(client: "MlflowClient", run_id: str) -> Callable[[], None]:
    """Return what renews the lease of a run."""
    return lambda: client.set_tag(run_id, LEASE, f"{time.time() + SECONDS:.0f}")


class Keeper:
    """Renews the leases of this process, on one thread, for as long as there are some."""

    def __init__(self, every: float = RENEWED_EVERY) -> None:
        self._every = every
        self._held: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def hold(self, name: str, renew: Callable[[], None]) -> None:
        """Renew a lease, such as that of the run with this id, until it is released."""
        with self._changed:
            self._held[name] = renew
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)
                self._thread.start()

    def release(self, name: str) -> None:
        """Renew it no longer: what it was for has ended."""
        with self._changed:
            self._held.pop(name, None)
            self._changed.notify_all()

    def _renew(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._held, self._every)
                if not self._held:
                    self._thread = None
                    return
                held = dict(self._held)
            for name, renew in held.items():
                try:
                    renew()
                # Whatever it is: the run itself meets it, and says so.
                except Exception as exc:
                    logger.debug("the lease of %s was not renewed: %s", name, exc)


keeper: Final = Keeper()
