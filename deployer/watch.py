"""The deployer's watch: engines that hang are started again, and so is the platform's watchdog.

It has a thread of its own, which no rollout holds up and no error ends.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from weighbridge.core import service_addresses
from weighbridge.core.hang_watch import LOOK_SECONDS, HangWatch
from weighbridge.core.service_addresses import WATCHDOG
from weighbridge.core.workspace import Workspace
from weighbridge.rollout.engine_watch import EngineWatch
from weighbridge.rollout.managed_target import open_target
from weighbridge.rollout.state import known_targets
from weighbridge.serving.supervisor import Supervisor

logger = logging.getLogger(__name__)

WATCHDOG_GRACE = 120.0
"""Seconds that the watchdog may take from its start to its first look."""


class Watch:
    """Looks at every engine that serves, its address, and the watchdog, every few seconds."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._home = workspace.settings.home
        self._engines: dict[str, EngineWatch] = {}
        self._watchdog = HangWatch(WATCHDOG_GRACE)
        self._problems: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def look(self) -> None:
        """Look once at each of them."""
        for name in known_targets(self._home):
            with self._surviving(name):
                managed = open_target(name, self._workspace)
                if managed is not None:
                    self._engines.setdefault(name, EngineWatch()).look(managed)
                    managed.keep_address()
        with self._surviving(WATCHDOG):
            self._look_at_watchdog()

    def _look_at_watchdog(self) -> None:
        supervisor, now = Supervisor(self._home), time.time()
        state = supervisor.state(WATCHDOG)
        since = state.since if state and state.up and state.pid else 0.0
        if self._watchdog.look(service_addresses.watchdog_looks(self._home, since), since, now):
            logger.warning("the watchdog runs and does not look: it is started again")
            supervisor.kill(WATCHDOG)

    def _run(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.look()

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Log an error of the block, once for as long as it stays the same."""
        try:
            yield
        # Whatever it is: a watch that has ended sees nothing.
        except Exception as exc:
            if self._problems.get(what) != str(exc):
                logger.warning("watching %s: %s", what, exc)
            self._problems[what] = str(exc)
        else:
            self._problems.pop(what, None)
