"""The platform's watchdog: a service that runs and answers nobody is ended, and supervisord starts
it again.

supervisord sees a process that ended; this sees one that stands still. The deployer watches the
watchdog, which watches the deployer (deployer/watch.py).

Usage: ``python -m weighbridge.services.watchdog``, started by `weighbridge up`.

::

    HOME/run/watchdog.json      when each service was started again last; touched at every look
"""

import json
import logging
import sys
import time

from weighbridge.core.files import replace_text
from weighbridge.core.hang_watch import LOOK_SECONDS, HangWatch
from weighbridge.core.service_addresses import WATCHDOG, watchdog_file, watchdog_restarts
from weighbridge.core.settings import Settings
from weighbridge.services.service_status import ServiceStatus, all_services
from weighbridge.serving.supervisor import Supervisor

logger = logging.getLogger("weighbridge.services.watchdog")

GRACE = 300.0
"""Seconds that a service may take from its start to its first answer; the first makes databases."""


class Watchdog:
    """Watches the services of one installation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._supervisor = Supervisor(settings.home)
        self._watches: dict[str, HangWatch] = {}
        self._restarts = watchdog_restarts(settings.home)

    def look(self) -> None:
        """Look once at every service, and start those again that have hung for long."""
        services = all_services(self._settings, self._supervisor)
        prefect_answers = any(one.name == "prefect" and one.answers for one in services)
        for service in services:
            watch = self._watches.setdefault(service.name, HangWatch(GRACE))
            # Only Prefect knows how the worker is.
            if service.name == WATCHDOG or (service.name == "worker" and not prefect_answers):
                watch.forget()
            elif watch.look(service.answers, service.since, time.time()):
                self._restart(service)
        self.beat()

    def beat(self) -> None:
        """Show the deployer, and `weighbridge status`, that the watchdog looks."""
        try:
            # Needs no room on the disk, once the file is there.
            watchdog_file(self._settings.home).touch()
        except OSError as exc:
            logger.warning("%s cannot be touched: %s", watchdog_file(self._settings.home), exc)

    def _restart(self, service: ServiceStatus) -> None:
        logger.warning("%s runs and does not answer: it is started again", service.name)
        self._supervisor.kill(service.name)
        self._restarts[service.name] = time.time()
        try:
            replace_text(watchdog_file(self._settings.home), json.dumps(self._restarts))
        except OSError as exc:
            logger.warning("that %s was restarted is not written down: %s", service.name, exc)


def main() -> int:
    """Watch until a signal ends the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    watchdog = Watchdog(Settings())
    while True:
        try:
            watchdog.look()
        # Whatever it is: a watchdog that has ended sees nothing.
        except Exception:
            logger.exception("this look saw nothing")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
